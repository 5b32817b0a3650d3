"""What every test shares: an offline machine, few threads, small models."""

import gc
import logging
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import hypothesis
import pytest
import torch

gc.set_threshold(100_000)  # or a fifth of an import is walks through what is no garbage

# The machine may be busy; and CI is to find what a change broke, the same at each run.
hypothesis.settings.register_profile("tests", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("tests")

if not torch.cuda.is_available():
    # Read when Triton is first imported, by whichever test: its kernels run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

_imported = 0  # modules, when garbage was last collected


@pytest.fixture(autouse=True)
def _few_threads_and_a_known_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_graph_of_another_test():
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture(autouse=True)
def _imports_are_no_garbage():
    """A Trainer collects garbage after it trained: without it walking all that is imported."""
    global _imported
    if len(sys.modules) > _imported + 50:
        gc.collect()
        gc.freeze()
        _imported = len(sys.modules)


@pytest.fixture(autouse=True)
def _one_environment():
    """`datasets` leaves a copy in its place when it maps in processes; rich reads the old one."""
    environment = os.environ
    yield
    os.environ = environment  # noqa: B003 - it is the same again


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries say that their objects leak


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # With `--no-loadscope-reorder` (see pyproject.toml), no long file is left to the end alone.
    items.sort(key=lambda item: "slow" not in item.keywords)
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and there is none"))


@pytest.fixture
def caplog(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """Has our logger's messages too, which transformers passes on to the root's in CI alone."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return caplog
