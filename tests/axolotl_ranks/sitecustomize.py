"""For the ranks that torchrun starts for Axolotl: DeepSpeed on the CPU, over gloo.

accelerate knows no backend for DeepSpeed on CPUs. It then takes each rank for the only one, gives
all of them the same rows, and cannot gather what they measured. Python imports this file because
its folder is on PYTHONPATH.
"""

import os

if "LOCAL_RANK" in os.environ:
    import deepspeed
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    def _gloo(self: PartialState, *args: object, **kwargs: object) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_CPU

    PartialState._prepare_backend = _gloo
    # An operator for shared memory, which DeepSpeed would compile; gloo does as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
