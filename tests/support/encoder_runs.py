"""Runs of the trainers of sentence-transformers, and what the noise must be in their passes."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentence_transformers as st
import torch
from datasets import Dataset
from recorder import Call, count_hooks, recorded
from tiny_encoders import HIDDEN, PAD, texts
from torch import nn

from neft_plugins import NEFTCallback, NEFTConfig

ALPHA = 5.0
CONFIG = NEFTConfig(alpha=ALPHA, distribution="rademacher", seed=3)
ROWS = 8
COUNT = 96
PAIRS = {"anchor": texts(COUNT, seed=1), "positive": texts(COUNT, seed=2)}


def trainer_of(
    model: Any,
    folder: Path,
    loss: Callable[[Any], Any],
    columns: dict[str, Sequence[Any]] | Any = PAIRS,
    config: NEFTConfig | None = CONFIG,
    **options: Any,
) -> Any:
    """A trainer of the model's kind; nobody tells it, or the noise, which module embeds tokens.

    Args:
        model: A model of sentence-transformers.
        folder: The output folder.
        loss: Makes the loss of the model.
        columns: Of the dataset, or the datasets.
        config: What noise; None for none.
        **options: Of the trainer (``eval_dataset``, ``callbacks``), else of its arguments.
    """
    kind = type(model).__name__
    own = {key: options.pop(key) for key in ("eval_dataset", "callbacks") if key in options}
    arguments = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": ROWS,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    noise = [] if config is None else [NEFTCallback(config)]
    return getattr(st, f"{kind}Trainer")(
        model=model,
        args=getattr(st, f"{kind}TrainingArguments")(**arguments | options),
        train_dataset=Dataset.from_dict(columns) if type(columns) is dict else columns,
        loss=loss(model),
        **own | {"callbacks": [*own.get("callbacks", []), *noise]},
    )


def word_embeddings(model: nn.Module) -> nn.Module:
    return next(m for name, m in model.named_modules() if name.endswith("word_embeddings"))


def train(trainer: Any, embedding: nn.Module | None = None, **how: Any) -> list[Call]:
    """The training passes' calls of the (only) embedding; no hook may be left."""
    with recorded(trainer.model, [embedding or word_embeddings(trainer.model)]) as calls:
        trainer.train(**how)
    assert count_hooks(trainer.model) == 0
    assert not any(call.noisy for call in calls if not (call.training and call.with_gradients))
    return [call for call in calls if call.training and call.with_gradients]


def check_noise(calls: list[Call], passes: int) -> None:
    """alpha / sqrt(3 L D) in each coordinate of a text's tokens, 0 on padding; no draw twice."""
    assert len(calls) == passes
    for call in calls:
        real = call.ids != PAD
        length = real.sum(1, keepdim=True)
        size = torch.where(real, ALPHA / (3 * length * HIDDEN) ** 0.5, 0.0)
        expected = size.unsqueeze(-1).expand_as(call.noise)
        torch.testing.assert_close(call.noise.abs(), expected, rtol=1e-4, atol=1e-6)
    assert any((call.ids == PAD).any() for call in calls), "nothing was padded"
    noise = [rows for call in calls for rows in call.noise.split(ROWS)]
    for one, other in itertools.combinations(noise, 2):
        assert abs(correlation(one, other)) < 5
    assert correlation(noise[0], noise[0]) > 15  # so a draw that is shared would be seen


def correlation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of the signs of two (B, T, D) noises, where both are, in standard deviations."""
    rows, width = (min(sizes) for sizes in zip(one.shape[:2], other.shape[:2], strict=True))
    product = one[:rows, :width].sign() * other[:rows, :width].sign()
    return float(product.sum() / product.count_nonzero() ** 0.5)


def logged(trainer: Any, key: str = "loss") -> list[float]:
    """What each training step logged."""
    return [log[key] for log in trainer.state.log_history if "loss" in log]
