"""Compiled models: no graph is compiled again. Each test begins without any, see ../conftest.py."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def no_recompilation() -> Iterator[None]:
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
