"""What goes wrong on a rank, and the runs in which it does."""

import functools
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import engines
import torch
import training
from ranks import Ranks
from recorder import count_hooks
from transformers import TrainerState

from neft_plugins import NEFTSFTTrainer

ENGINES = {name: engines.ENGINES[name] for name in ("DDP", "FSDP2")} | {
    "ZeRO-3": engines.zero(3, zero3_save_16bit_model=True)
}

Fault = Callable[[], Any]
"""Makes a context manager in which something goes wrong; it is pickled on the way to the rank."""


def start(
    folder: Path,
    engine: str | None,
    keys: dict[str, Any],
    fault: Fault | None = None,
    rank: int | None = 0,
    ranks: int = 2,
    **how: Any,
) -> Ranks:
    """A run of ``training.train`` with a fault on one rank, begun.

    Args:
        folder: For what it writes; the output folder is ``out`` in it.
        engine: One of ``ENGINES``; None for one rank without a launcher.
        keys: Arguments of the trainer.
        fault: What goes wrong.
        rank: Where it does; None for everywhere.
        ranks: How many there are.
        **how: See ``training.train``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = engines.launched(ENGINES[engine], folder) if engine else {}
    return Ranks(
        folder / f"run{len(list(folder.glob('run*')))}",
        _train,
        *(str(folder / "out"), {"use_cpu": True} | keys, how, fault, rank),
        world_size=ranks if engine else 1,
        environment=environment,
    )


def _train(
    folder: str, keys: dict[str, Any], how: dict[str, Any], fault: Fault | None, rank: int | None
) -> dict[str, Any]:
    # transformers 5.16 has torch load the optimizer of a CPU rank to "cpu:0"; torch knows "cpu".
    torch.serialization.register_package(
        0, lambda storage: None, lambda storage, at: storage if at.startswith("cpu") else None
    )
    here = fault if rank is None or os.environ.get("RANK", "0") == str(rank) else None
    with told_what_is_left(), (here or nullcontext)():
        return training.train(folder, keys, how)


@contextmanager
def told_what_is_left() -> Iterator[None]:
    """Print how many of our hooks are on the model after training, however it ended."""
    train = NEFTSFTTrainer.train

    def train_and_tell(self: NEFTSFTTrainer, *args: Any, **kwargs: Any) -> Any:
        try:
            return train(self, *args, **kwargs)
        finally:
            print(f"{count_hooks(self.model)} hooks are left")

    with mock.patch.object(NEFTSFTTrainer, "train", train_and_tell):
        yield


@contextmanager
def before(owner: Any, name: str, do: Callable[..., Any]) -> Iterator[None]:
    """Each call of ``owner.name`` does this first, with the same arguments."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def both(*args: Any, **kwargs: Any) -> Any:
        do(*args, **kwargs)
        return original(*args, **kwargs)

    with mock.patch.object(owner, name, both):
        yield


@contextmanager
def in_pass(number: int, do: Callable[[], Any]) -> Iterator[None]:
    """As the given micro-batch, counted from 0, begins."""
    passes = itertools.count()
    with before(
        NEFTSFTTrainer, "training_step", lambda *args: do() if next(passes) == number else None
    ):
        yield


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_in_pass(number: int) -> Any:
    """SIGKILL in a forward pass."""
    return in_pass(number, die)


@contextmanager
def dies_while_saving(file: str) -> Iterator[None]:
    """SIGKILL when the file is half written."""

    def die_halfway(what: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if file in str(path):
            Path(path).write_bytes(b"{")
            die()

    with before(torch, "save", die_halfway), before(TrainerState, "save_to_json", die_halfway):
        yield


@contextmanager
def raises(owner: Any, name: str, call: int, error: BaseException) -> Iterator[None]:
    """A method raises, in the call of that number."""
    calls = itertools.count()

    def do(*args: Any, **kwargs: Any) -> None:
        if next(calls) == call:
            raise error

    with before(owner, name, do):
        yield
