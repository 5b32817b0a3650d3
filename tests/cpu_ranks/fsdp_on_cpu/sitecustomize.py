"""For the ranks that accelerate launches: FSDP on the CPU, over gloo.

accelerate shards for kinds of accelerators only; on CPU ranks it ignores its FSDP config and copies
the whole model to each. Here it is told that its gloo ranks are GPUs, whose device
``ACCELERATE_TORCH_DEVICE=cpu`` then says. Python imports this file because its folder is on
PYTHONPATH.
"""

import os

if os.environ.get("LOCAL_RANK") and os.environ.get("ACCELERATE_USE_FSDP") == "true":
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    def _gloo_ranks_as_gpus(
        self: PartialState, *args: object, **kwargs: object
    ) -> tuple[str, DistributedType]:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = _gloo_ranks_as_gpus
