"""TRL's trainers on the quickstart's model, and what their losses take it through."""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from helpers import MODEL
from recorder import Call, recorded
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    TrainerCallback,
)

STEPS = 2


def _say(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


_PAIR = {"chosen": " The river sang. " * 2, "rejected": " No."}
ROWS: dict[str, dict[str, Any]] = {
    "completions": {"completion": " The river sang."},
    "pairs": _PAIR,
    "triples": {**_PAIR, "reference": " The river."},
    "labelled": {"completion": " The river sang.", "label": True},
    "steps": {"completions": [" The river", " sang."], "labels": [True, False]},
    "prompts": {},
    "chats": {},
    "hints": {"privileged_context": "The river sings."},
    "conversations": {},
}


def rows(kind: str, count: int = 16) -> Dataset:
    """Rows of one kind, of prompts that differ."""
    made = []
    for i in range(count):
        prompt = f"A story of {i}:"
        row = {"prompt": prompt, **ROWS[kind]}
        if kind == "labelled":
            row["label"] = bool(i % 2)
        if kind == "chats":
            row["prompt"] = _say("user", prompt)
        if kind == "conversations":
            row = {"messages": _say("user", prompt) + _say("assistant", " The river sang.")}
        made.append(row)
    return Dataset.from_list(made)


def reward_length(completions: list[Any], **columns: Any) -> list[float]:
    """A reward as users write one."""
    return [float(len(str(text))) for text in completions]


def language_model() -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def reward_model() -> nn.Module:
    kind = AutoModelForSequenceClassification
    return kind.from_pretrained(MODEL, num_labels=1, dtype=torch.float32)


def step_reward_model() -> nn.Module:
    kind = AutoModelForTokenClassification
    return kind.from_pretrained(MODEL, num_labels=2, dtype=torch.float32)


WITH: dict[str, Any] = {
    "reward_funcs": lambda: reward_length,
    "ref_model": language_model,
    "teacher_model": language_model,
}


@dataclass
class Case:
    """A trainer of TRL, and how it is run.

    Attributes:
        module: The module that has it, in some version of TRL; ``trl`` itself is looked at too.
        name: As in ``DPOTrainer``.
        data: A kind of rows.
        options: Of the trainer's arguments.
        takes: The models and the reward that it is given, out of ``WITH``.
        reward: What its reward is a model, and not a function.
        model: What is trained.
        passes: Training passes in a micro-batch.
    """

    module: str
    name: str
    data: str
    options: dict[str, Any] = field(default_factory=dict)
    takes: tuple[str, ...] = ()
    reward: Any = None
    model: Any = language_model
    passes: int = 1

    def with_options(self, **options: Any) -> "Case":
        return replace(self, options=self.options | options)

    def find(self, name: str) -> Any:
        """A class of TRL; the test is skipped where the version at hand has no such trainer."""
        for module in (self.module, "trl"):
            try:
                return getattr(import_module(module), name)
            except (ImportError, AttributeError):
                continue
        pytest.skip(f"trl {trl.__version__} has no {name}")

    def arguments(self, folder: Path) -> Any:
        common = {
            "max_steps": STEPS,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "logging_steps": 1,
            "report_to": [],
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "eval_strategy": "steps",
            "eval_steps": STEPS,
        }
        config = self.find(f"{self.name}Config")
        return config(output_dir=str(folder), **common | self.options)

    def trainer(self, folder: Path, callback: TrainerCallback, peft_config: Any = None) -> Any:
        """The trainer, ready to train."""
        tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
        given = {name: WITH[name]() for name in self.takes}
        if self.reward is not None:
            given["reward_funcs"] = self.reward()
        if peft_config is not None:
            given["peft_config"] = peft_config
        return self.find(f"{self.name}Trainer")(
            model=self.model(),
            args=self.arguments(folder),
            train_dataset=rows(self.data),
            eval_dataset=rows(self.data, 2),
            processing_class=tokenizer,
            callbacks=[callback],
            **given,
        )


def train(trainer: Any) -> tuple[list[Call], list[Call]]:
    """Every pass of the model that is trained, and those of the models beside it."""
    own = trainer.accelerator.unwrap_model(trainer.model)
    beside = (getattr(trainer, name, None) for name in ("ref_model", "teacher_model"))
    others = {id(m): m for m in map(trainer.accelerator.unwrap_model, filter(None, beside))}
    others.pop(id(own), None)
    with ExitStack() as stack:
        passes = stack.enter_context(recorded(own))
        lists = [stack.enter_context(recorded(other)) for other in others.values()]
        trainer.train()
    return passes, [each for calls in lists for each in calls]


def logs(trainer: Any, key: str) -> list[float]:
    """What the training steps logged under a key."""
    return [log[key] for log in trainer.state.log_history if key in log]
