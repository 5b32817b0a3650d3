"""What makes ranks on the CPU, over gloo, the ranks that accelerate knows from GPUs."""

import os


def prepare() -> None:
    """Call in each rank before accelerate looks around; what it does depends on the launcher."""
    if "LOCAL_RANK" not in os.environ:
        return
    if os.environ.get("ACCELERATE_TORCH_DEVICE") == "cpu":
        shard_on_gloo()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        do_not_compile()


def shard_on_gloo() -> None:
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
    # Offloaded parameters are pinned for the copy to a GPU; without one, PyTorch cannot.
    torch.Tensor.pin_memory = lambda tensor, *args: tensor


def do_not_compile() -> None:
    """Keep DeepSpeed from compiling an operator for shared memory; gloo does as well."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
