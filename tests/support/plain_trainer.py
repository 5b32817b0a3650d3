"""A Trainer of transformers on a small Llama, and callbacks to stop it and to read its log."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from helpers import tiny_llama
from recorder import Call, check_sizes
from transformers import Trainer, TrainerCallback, TrainingArguments

GIVEN = {"train_dataset", "data_collator", "processing_class"}


def rows(count: int = 32) -> list[dict[str, torch.Tensor]]:
    """Nine tokens each, of which every second row pads three."""
    made = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 64, (count, 9), generator=made)
    mask = torch.ones_like(ids)
    mask[::2, 6:] = 0
    return [
        {"input_ids": i, "attention_mask": m, "labels": i.masked_fill(m == 0, -100)}
        for i, m in zip(ids, mask, strict=True)
    ]


def mask_of(ids: torch.Tensor) -> torch.Tensor:
    """(B, T) the mask of a batch of ``rows``."""
    masks = {tuple(row["input_ids"].tolist()): row["attention_mask"] for row in rows()}
    return torch.stack([masks[tuple(row.tolist())] for row in ids])


def check_noise(calls: list[Call], alphas: list[float]) -> None:
    """Rademacher noise, added once, in each micro-batch of ``make_trainer``."""
    assert len(calls) == 2 * len(alphas)
    for index, call in enumerate(calls):
        check_sizes(call, mask_of(call.ids) == 1, alphas[index // 2])


def make_trainer(
    folder: Path,
    callbacks: Iterable[TrainerCallback] = (),
    model: Any = None,
    cls: Any = Trainer,
    **arguments: Any,
) -> Trainer:
    """Four steps of two micro-batches of four rows.

    Args:
        folder: The output folder.
        callbacks: Of the Trainer.
        model: Unset, a small Llama with dropout.
        cls: The Trainer.
        **arguments: Of the Trainer (those of ``GIVEN``), else of its arguments.
    """
    torch.manual_seed(0)
    given = {"train_dataset": rows(), "eval_dataset": rows(4)}
    given |= {key: arguments.pop(key) for key in GIVEN & arguments.keys()}
    defaults = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
    }
    model = tiny_llama(attention_dropout=0.1) if model is None else model
    return cls(
        model=model,
        args=TrainingArguments(**defaults | arguments),
        callbacks=list(callbacks),
        **given,
    )


class InterruptAt(TrainerCallback):
    """Ctrl-C at the end of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


class Logs(TrainerCallback):
    """What the callbacks after the others are given to log."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))
