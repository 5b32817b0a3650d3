"""The engines of the tests: what `accelerate config` would have written for each, on two ranks."""

import json
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import training
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from helpers import REPO
from ranks import Ranks

BASE = {
    "compute_environment": "LOCAL_MACHINE",
    "num_machines": 1,
    "machine_rank": 0,
    "num_processes": 2,
    "mixed_precision": "no",
}


def zero(stage: int, **more: Any) -> dict[str, Any]:
    config = {"zero_stage": stage, "zero3_init_flag": stage == 3} | more
    return {**BASE, "distributed_type": "DEEPSPEED", "deepspeed_config": config}


def zero_from_file(name: str, **more: Any) -> dict[str, Any]:
    """A DeepSpeed JSON of ours, as the `deepspeed` key of the trainer's arguments takes it."""
    config = json.loads((REPO / "recipes" / "deepspeed" / f"{name}.json").read_text())
    config["zero_optimization"] |= more
    # DeepSpeed would compile its own Adam for offloaded states, half a minute of work.
    return {**BASE, "deepspeed": config | {"zero_force_ds_cpu_optimizer": False}}


def fsdp2(**more: Any) -> dict[str, Any]:
    config = {
        "fsdp_version": 2,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": True,
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": False,
    }
    return {**BASE, "distributed_type": "FSDP", "fsdp_config": config | more}


def parallelism(config: dict[str, Any], **sizes: Any) -> dict[str, Any]:
    """With accelerate's mesh: ``cp_size=2``, ..."""
    named = {f"parallelism_config_{key}": value for key, value in sizes.items()}
    return config | {"parallelism_config": named}


ENGINES = {
    "DDP": {**BASE, "distributed_type": "MULTI_GPU"},
    "FSDP2": fsdp2(fsdp_cpu_ram_efficient_loading=True),
    "FSDP2, CPU offload": fsdp2(fsdp_offload_params=True),
    "ZeRO-1": zero(1),
    "ZeRO-1, CPU offload": zero_from_file("zero2", stage=1, offload_optimizer={"device": "cpu"}),
    "ZeRO-2": zero_from_file("zero2"),
    "ZeRO-2, CPU offload": zero_from_file("zero2", offload_optimizer={"device": "cpu"}),
    "ZeRO-3": zero_from_file("zero3"),
    "ZeRO-3, without zero.Init": zero(3, zero3_init_flag=False),
    "ZeRO-3, CPU offload": zero_from_file("zero3_offload"),
}


def train(
    folder: Path,
    engine: dict[str, Any] | None = None,
    keys: dict[str, Any] | None = None,
    world_size: int = 2,
    function: Any = training.train,
    **how: Any,
) -> list[dict[str, Any]]:
    """A run on each rank of an engine.

    Args:
        folder: For what it writes; the output folder is ``out`` in it.
        engine: accelerate's config; unset, one rank without accelerate's launcher.
        keys: Arguments of the trainer.
        world_size: How many ranks.
        function: What each rank calls: ``training.train``, or something around it.
        **how: See ``training.train``.

    Returns:
        The record of each rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keys = {"use_cpu": True, **(keys or {})}
    environment: dict[str, str] = {}
    if engine and "deepspeed" in engine:
        keys["deepspeed"] = engine["deepspeed"]
    elif engine:
        environment = launched(engine, folder)
    return Ranks(
        folder,
        function,
        str(folder / "out"),
        keys,
        how,
        world_size=world_size if engine else 1,
        environment=environment,
    ).results()


def launched(config: dict[str, Any], folder: Path) -> dict[str, str]:
    """The variables by which ``accelerate launch --config_file`` tells its ranks of a config."""
    path = folder / "accelerate.yaml"
    path.write_text(yaml.safe_dump(config))
    args = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    return launch_variables(args)


def launch_variables(args: Namespace) -> dict[str, str]:
    """Those of ``accelerate launch`` with these arguments, for each rank."""
    config = yaml.safe_load(Path(args.config_file).read_text())
    args, _, _ = _validate_launch_command(args)
    if config["distributed_type"] == "DEEPSPEED":
        args.deepspeed_fields_from_accelerate_config = ",".join(config["deepspeed_config"])
        _, found = prepare_deepspeed_cmd_env(args)
    else:
        found = prepare_multi_gpu_env(args)
    return {key: value for key, value in found.items() if os.environ.get(key) != value}
