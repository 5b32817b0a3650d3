"""What a host wants before it prepares rows: a model, a folder to write to, and to say things."""

import contextlib
import gc
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from neft_plugins import _compat

_TALKATIVE = (
    *("accelerate", "axolotl", "bitsandbytes", "datasets"),
    *("huggingface_hub", "torchao", "transformers", "trl"),
)


def stand_in_model() -> Any:
    """A language model of a few weights: hosts need one to be there, and never call it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config)


@contextlib.contextmanager
def stand_in_run(*, keeps_devices: bool = False) -> Iterator[str]:
    """A folder for what a host writes; what it says, sets and changes ends with the context.

    Args:
        keeps_devices: Whether the host goes on using the state of accelerate that it has made.

    Yields:
        The folder, which is deleted at the end.
    """
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        _same_environment(),
        _quick_garbage_collection(),
        contextlib.nullcontext() if keeps_devices else _no_new_device_state(),
        _silence(),
    ):
        yield folder


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Nothing is asked of the Hub; what its cache has is there."""
    import datasets.config
    import huggingface_hub.constants

    modules: Any = (datasets.config, huggingface_hub.constants)  # which read it when imported
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


@contextlib.contextmanager
def _same_environment() -> Iterator[None]:
    environment, before = os.environ, dict(os.environ)
    try:
        yield
    finally:
        os.environ = environment  # noqa: B003 - datasets' map in processes leaves a copy there
        environment.clear()
        environment.update(before)


@contextlib.contextmanager
def _quick_garbage_collection() -> Iterator[None]:
    """Axolotl's packing collects garbage often, and would look at all that was imported."""
    was_frozen = gc.get_freeze_count() > 0
    gc.freeze()
    try:
        yield
    finally:
        if not was_frozen:  # or what the caller froze is walked through again
            gc.unfreeze()


@contextlib.contextmanager
def _no_new_device_state() -> Iterator[None]:
    """The state of accelerate holds for a process: what comes after may use another device."""
    was_there = _compat.has_accelerate_state()
    try:
        yield
    finally:
        if not was_there:
            _compat.forget_accelerate_state()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No progress bars, warnings and messages about a run that is none."""
    from datasets.utils import logging as bars

    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    had_bars = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # an error is an exception too
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(sys.stderr),  # Axolotl puts colorama's in their place
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_bars:
            bars.enable_progress_bar()
