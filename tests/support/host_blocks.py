"""The blocks of docs/other_hosts.md, run as they stand there, and the noise they should have."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from helpers import tiny_llama
from page_code import batches
from pages import DOCS, section
from recorder import Call, count_hooks, recorded, to_save
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader

from neft_plugins import NEFTConfig, attach_neft

ACCELERATE, FABRIC, LIGHTNING = HOSTS = ("accelerate", "Lightning Fabric", "PyTorch Lightning")
CONFIG = NEFTConfig(alpha=5.0, schedule="linear", seed=0)  # that of the page
ACCUMULATION = 2  # of the page too
Batch = dict[str, torch.Tensor]


def blocks_of(host: str) -> list[str]:
    """What the page shows for a host."""
    text = section(DOCS / "other_hosts.md", host)
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def places(host: str, count: int) -> list[tuple[int, int]]:
    """The (step, micro_step) of each micro-batch: of one epoch for Fabric, of two elsewhere.

    The last step of an epoch may have fewer micro-batches than the others.
    """
    epoch = [divmod(index, ACCUMULATION) for index in range(count)]
    steps = -(-count // ACCUMULATION)
    epochs = 1 if host == FABRIC else 2
    return [(e * steps + step, micro_step) for e in range(epochs) for step, micro_step in epoch]


def make_batches(count: int) -> list[Batch]:
    """The same ones at each call."""
    torch.manual_seed(1)
    return batches(count)


def loader_of(rows: Sequence[Batch]) -> DataLoader[Any]:
    """A loader that collates its batches, as accelerate must see to deal them to ranks."""
    items = [
        {name: values[row] for name, values in batch.items()}
        for batch in rows
        for row in range(len(batch["input_ids"]))
    ]
    return DataLoader(items, batch_size=len(rows[0]["input_ids"]))


def run_block(host: str, rows: Sequence[Batch], model: Any = None) -> tuple[list[Call], int]:
    """Run a host's block.

    Args:
        host: The title of its section.
        rows: The batches of an epoch.
        model: What to train; a new model when unset.

    Returns:
        The calls of the embedding, and how many of our hooks are left on the model.
    """
    torch.manual_seed(0)
    model = tiny_llama().eval() if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    names = {"model": model, "optimizer": optimizer, "torch": torch}
    names |= {"loader": loader_of(rows), "__name__": "page"}
    with recorded(model) as calls:
        try:
            exec(compile("\n".join(blocks_of(host)), f"{host}, other_hosts.md", "exec"), names)
        except BaseException as error:
            error.add_note(f"{count_hooks(model)} hooks are left")
            raise
    return calls, count_hooks(model)


@contextmanager
def after_each_step(do: Callable[[], None]) -> Iterator[None]:
    """Do something after each step of whatever optimizer."""
    handle = register_optimizer_step_post_hook(lambda *_: do())
    try:
        yield
    finally:
        handle.remove()


def plain_noise(
    calls: Sequence[Call],
    where: Sequence[tuple[int, int]],
    rows: Sequence[Batch],
    rank: int = 0,
    world_size: int = 1,
) -> list[torch.Tensor]:
    """The noise that a plain loop has on the same batches at the same steps."""
    model, total_steps = tiny_llama(), where[-1][0] + 1
    ranks = {"data_rank": rank, "data_world_size": world_size}
    with recorded(model) as own, attach_neft(model, CONFIG, total_steps, **ranks) as neft:
        for call, (step, micro_step) in zip(calls, where, strict=True):
            (batch,) = [row for row in rows if torch.equal(row["input_ids"], call.ids)]
            neft.set_step(step, micro_step)
            model(**batch)
    return [call.noise for call in own]


def on_a_rank(host: str, count: int) -> dict[str, Any]:
    """On one of several ranks: its calls, and the hooks that are left.

    accelerate deals the batches itself; for the others each rank has its own.
    """
    rows, rank = make_batches(count), int(os.environ["RANK"])
    if host == ACCELERATE:
        calls, left = run_block(host, rows)
        return {"calls": to_save(calls), "left": left}
    import lightning
    from lightning import fabric

    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    quiet = {"logger": False, "enable_checkpointing": False, "use_distributed_sampler": False}
    with (
        mock.patch.object(fabric, "Fabric", _with(fabric.Fabric, options)),
        mock.patch.object(lightning, "Trainer", _with(lightning.Trainer, options | quiet)),
    ):
        calls, left = run_block(host, rows[rank::2])
    return {"calls": to_save(calls), "left": left}


def _with(made: Any, options: dict[str, Any]) -> Any:
    return lambda **given: made(**given | options)
