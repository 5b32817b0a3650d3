"""NEFTSFTTrainer on the quickstart's model and a few prompts with completions."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from helpers import MODEL
from recorder import Call, check_sizes
from transformers import TrainerCallback

from neft_plugins import NEFTSFTConfig, NEFTSFTTrainer

PAD = 2
WORDS = ["fox, mill, red kite", "cat, beach, blue lamp", "owl, barn, green bell", "hen, hill, hat"]
ROWS = [
    {
        "prompt": f"Write a story with these words: {WORDS[i % 4]}.\nStory:",
        "completion": " Once upon a time" + " there was a river" * (i % 3 + 1) + ".",
    }
    for i in range(16)
]


def arguments(folder: Path, cls: Any = NEFTSFTConfig, **given: Any) -> Any:
    defaults = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "model_init_kwargs": {"dtype": "float32"},
    }
    return cls(**defaults | given)


def make_trainer(
    folder: Path,
    model: Any = MODEL,
    callbacks: list[TrainerCallback] | None = None,
    cls: Any = NEFTSFTTrainer,
    config: Any = None,
    **given: Any,
) -> Any:
    """Three steps with rademacher noise, unless the arguments say otherwise."""
    noise = {"neftune_noise_alpha": 5.0, "neft_distribution": "rademacher"}
    more = {k: given.pop(k) for k in ("peft_config", "compute_loss_func") if k in given}
    return cls(
        model=model,
        args=config or arguments(folder, **noise | given),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS[:4]),
        callbacks=callbacks,
        **more,
    )


def check_noise(calls: list[Call], alphas: list[float]) -> None:
    """Rademacher noise, added once, on every token of each step's micro-batch."""
    for call, alpha in zip(calls, alphas, strict=True):
        check_sizes(call, call.ids != PAD, alpha)
