"""Compiled models: each test begins with nothing compiled and leaves nothing behind."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def compiled_anew() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def no_recompilation(compiled_anew) -> Iterator[None]:
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
