"""A Trainer of transformers on a small Llama, and callbacks to stop it and to read its log."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from helpers import tiny_llama
from transformers import Trainer, TrainerCallback, TrainingArguments


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


def make_trainer(
    folder: Path,
    callbacks: Iterable[TrainerCallback] = (),
    model: Any = None,
    cls: Any = Trainer,
    **arguments: Any,
) -> Trainer:
    """Four steps of two micro-batches of four rows."""
    torch.manual_seed(0)
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
        train_dataset=rows(),
        eval_dataset=rows(4),
        callbacks=list(callbacks),
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
