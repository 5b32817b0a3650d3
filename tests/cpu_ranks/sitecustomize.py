"""For the ranks that accelerate launches: FSDP and ZeRO-3 on the CPU, over gloo.

Python imports this file because its folder is on PYTHONPATH.
"""

import os


def _shard_on_gloo() -> None:
    """Tell accelerate that its gloo ranks are GPUs.

    It shards for kinds of accelerators only: on CPU ranks it ignores its FSDP config and copies the
    whole model to each. Their device is then what ``ACCELERATE_TORCH_DEVICE`` says.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    def prepare_backend(
        self: PartialState, *args: object, **kwargs: object
    ) -> tuple[str, DistributedType]:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = prepare_backend


def _do_not_compile() -> None:
    """Keep DeepSpeed from compiling an operator for shared memory; gloo does as well."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


if os.environ.get("LOCAL_RANK"):
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        _shard_on_gloo()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        _do_not_compile()
