"""Runs that are killed the moment that a checkpoint counts as complete."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from plain_trainer import make_trainer
from ranks import Ranks
from transformers import TrainerState

from neft_plugins import NEFTCallback, NEFTConfig


@contextmanager
def dies_when_complete(step: int) -> Iterator[None]:
    """SIGKILL as soon as the checkpoint's ``trainer_state.json`` is written."""
    save = TrainerState.save_to_json

    def save_and_die(self: TrainerState, json_path: str) -> None:
        save(self, json_path)
        if Path(json_path).parent.name == f"checkpoint-{step}":
            os.kill(os.getpid(), signal.SIGKILL)

    with mock.patch.object(TrainerState, "save_to_json", save_and_die):
        yield


def start_plain(folder: Path, config: NEFTConfig, dies_at: int | None = None, **how: Any) -> Ranks:
    """A plain Trainer with a NEFTCallback in a process of its own, begun.

    Args:
        folder: For what it prints; the output folder is ``out`` in it.
        config: What noise.
        dies_at: At which step's checkpoint it is killed.
        **how: Arguments of the Trainer, and ``resume``, the checkpoint that ``train`` is given.
    """
    return Ranks(folder, _train_plain, folder / "out", config, dies_at, how, world_size=1)


def _train_plain(
    output: Path, config: NEFTConfig, dies_at: int | None, how: dict[str, Any]
) -> dict[str, Any]:
    resume = how.pop("resume", None)
    trainer = make_trainer(output, [NEFTCallback(config)], **how)
    with dies_when_complete(dies_at) if dies_at else nullcontext():
        trainer.train(resume_from_checkpoint=resume)
    return {
        "weights": torch.cat([p.detach().flatten() for p in trainer.model.parameters()]),
        "log": [log["loss"] for log in trainer.state.log_history if "loss" in log],
    }
