"""Axolotl's runs on two ranks: every engine that it shards or copies a model with, and checks."""

import json
from pathlib import Path
from typing import Any

import torch
from axolotl_noise import ALPHA, LORA, NOISE, QLORA, documents_of
from axolotl_runs import FORKS, Run, call_axolotl, write_config
from helpers import REPO
from ranks import Ranks
from recorder import Call, are_two_draws

STEPS = 2
# Or accelerate neither shards nor calls DeepSpeed.
AS_ON_GPUS = {"ACCELERATE_USE_CPU": "false"}
WORDS = ["the river", "an old mill", "a red kite", "the fox and the owl", "snow"]
# The engines shard weights of one kind: what holds the 4 bits is float32, as the rest here.
IN_FLOAT32 = {
    "bnb_config_kwargs": {
        "bnb_4bit_quant_storage": "float32",
        "bnb_4bit_compute_dtype": "float32",
    },
}
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": LORA,
    "qlora": QLORA | IN_FLOAT32,
}
ROWS: dict[str, dict[str, Any]] = {
    "packed": {"sample_packing": True, "micro_batch_size": 1},
    "padded": {"micro_batch_size": 2},
}


def deepspeed(recipe: str) -> dict[str, Any]:
    config = json.loads((REPO / "recipes" / "deepspeed" / f"{recipe}.json").read_text())
    # PyTorch's optimizer instead of DeepSpeed's own for the CPU, which takes long to compile.
    return {"deepspeed": config | {"zero_force_ds_cpu_optimizer": False}}


def fsdp2(**keys: bool) -> dict[str, Any]:
    """As in Axolotl's documentation."""
    config = {
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
        "state_dict_type": "FULL_STATE_DICT",
        "reshard_after_forward": True,
    }
    return {"fsdp_version": 2, "fsdp_config": config | keys}


ENGINES = {
    "ddp": {},
    "zero2": deepspeed("zero2"),
    "zero3": deepspeed("zero3"),
    "zero3_offload": deepspeed("zero3_offload"),
    "fsdp2": fsdp2(),
    "fsdp2_first_rank_loads": fsdp2(cpu_ram_efficient_loading=True),
    "fsdp2_offload": fsdp2(offload_params=True),
}


def write_data(folder: Path) -> dict[str, Any]:
    """Texts of many lengths, and where the runs keep what they make of them."""
    rows = [{"text": f"{i % 7} " + " and".join((WORDS * 2)[: i % 9 + 1])} for i in range(64)]
    path = folder / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    source = {"path": str(path), "ds_type": "json", "type": "completion"}
    return {"datasets": [source], "dataset_prepared_path": str(folder / "prepared")}


def train(folder: Path, data: dict[str, Any], ranks: int = 2, **keys: Any) -> list[Run]:
    """A run of Axolotl on each rank; one rank accumulates what two have at a time."""
    steps = {"max_steps": STEPS, "gradient_accumulation_steps": 2 // ranks}
    folder.mkdir(exist_ok=True)
    config = write_config(folder, data | NOISE | steps | keys)
    how = {"world_size": ranks, "forks": FORKS, "environment": AS_ON_GPUS}
    started = Ranks(folder, call_axolotl, "train", config, **how)
    started.results()
    return [Run(0, started.printed(rank), folder / "out", rank) for rank in range(ranks)]


def check_size(ids: torch.Tensor, noise: torch.Tensor) -> None:
    """Every coordinate has the size that the closed form gives its token; padding has none."""
    number, real = documents_of(ids)
    lengths = torch.bincount(number[real])[number]
    assert len(lengths.unique()) > 1
    size = torch.where(real, ALPHA / (3 * lengths * noise.shape[-1]).sqrt(), 0.0)
    torch.testing.assert_close(noise.abs(), size[..., None].expand_as(noise), rtol=0, atol=1e-6)


def check_that_they_differ(mine: Call, other: Call) -> None:
    """Two ranks at one step: other rows, and signs that have nothing to do with each other."""
    assert not torch.equal(mine.ids, other.ids)
    assert are_two_draws(mine, other)
