"""What a rank does in these tests: a run of a Trainer, and a record of what the noise was."""

import json
import os
import random
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy
import torch
from helpers import MODEL
from recorder import count_hooks, recorded, snapshot, to_save
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from neft_plugins import NEFTSFTConfig, NEFTSFTTrainer

HIDDEN = 128  # of the model
FIRST_TOKEN = 100
PROMPT = 5
LENGTHS = [random.Random(number).randint(9, 40) for number in range(64)]


def train(folder: str, keys: dict[str, Any], how: dict[str, Any] | None = None) -> dict[str, Any]:
    """A run of ``NEFTSFTTrainer`` on this rank.

    Args:
        folder: The output folder.
        keys: Arguments of ``NEFTSFTConfig`` beside those here.
        how: ``adapter`` (lora, qlora), ``resume``, ``profile``.

    Returns:
        The embedding's call in each micro-batch; losses; what was left behind.
    """
    how = how or {}
    dtype = how.get("dtype") or ("bfloat16" if how.get("adapter") == "qlora" else "float32")
    defaults = {
        "output_dir": folder,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": dtype == "bfloat16",
        "completion_only_loss": True,
        "shuffle_dataset": False,
        "dataset_num_proc": None,
        "seed": 7,
        "model_init_kwargs": {"device_map": None, "dtype": dtype},
    }
    defaults["model_init_kwargs"] |= how.get("model_init_kwargs", {})
    trainer = NEFTSFTTrainer(
        model=MODEL,
        args=NEFTSFTConfig(**defaults | keys),
        train_dataset=dataset(),
        **adapter(how.get("adapter")),
    )
    record: dict[str, Any] = {}
    profiler = profile(activities=[ProfilerActivity.CPU]) if how.get("profile") else nullcontext()
    with recorded(trainer.model) as calls, profiler as profiled:
        trainer.train(resume_from_checkpoint=how.get("resume"))
    trained = (call for call in calls if call.training and call.with_gradients)
    record["passes"] = to_save(call for call in trained if not call.recomputed)
    record["device"] = trainer.accelerator.device.type
    record["log"] = [log for log in trainer.state.log_history if "loss" in log]
    if profiled is not None:
        record["collectives"] = count_collectives(profiled, Path(folder).parent)
    # What each of the run's generators would draw next.
    record["draws"] = [float(torch.rand(())), random.random(), float(numpy.random.rand())]
    record["hooks"] = count_hooks(trainer.model)
    record["left"] = snapshot(trainer.model)
    record["sharded"] = any(
        isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")
        for parameter in trainer.model.parameters()
    )
    if not record["sharded"]:
        record["weights"] = {n: p.detach() for n, p in trainer.model.named_parameters()}
    return record


def count_collectives(profiled: profile, folder: Path) -> Counter[str]:
    """How often each was run. `key_averages` knows too, in seconds of work."""
    trace = folder / f"trace{os.environ.get('RANK', 0)}.json"
    profiled.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    trace.unlink()
    return Counter(event["name"] for event in events if event["name"].startswith("gloo:"))


def dataset() -> Any:
    """Documents whose first token says which they are; nothing else is like it."""
    from datasets import Dataset

    draw = random.Random(0)
    rows = []
    for number, length in enumerate(LENGTHS):
        ids = [FIRST_TOKEN + number, *(draw.randrange(300, 1500) for _ in range(length - 1))]
        rows.append({"input_ids": ids, "completion_mask": [0] * PROMPT + [1] * (length - PROMPT)})
    return Dataset.from_list(rows)


def adapter(kind: str | None) -> dict[str, Any]:
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig

    if kind in (None, "full"):
        return {}
    arguments: dict[str, Any] = {"peft_config": LoraConfig(r=4, target_modules="all-linear")}
    if kind == "qlora":
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_quant_storage=torch.bfloat16,
        )
    return arguments
