"""What makes ranks on the CPU, over gloo, the ranks that the hosts know from GPUs.

One harness for every launcher (``neft sft``, ``accelerate launch``, torchrun, ``axolotl train``)
and every engine. Which engine it is, accelerate's own variables say when it first looks around.
"""

import atexit
import os
import time
from typing import Any


def prepare() -> None:
    """Call in each rank before a host looks around."""
    if "LOCAL_RANK" not in os.environ:
        return
    _give_gloo_time()
    from accelerate import PartialState
    from accelerate.parallelism_config import ParallelismConfig
    from transformers import modeling_utils

    PartialState._prepare_backend = _prepare_backend
    build_mesh = ParallelismConfig.build_device_mesh
    check_map = modeling_utils.check_and_set_device_map

    def on_cpu(device_map: Any) -> Any:
        one = isinstance(device_map, dict) and isinstance(device_map.get(""), int)
        return check_map({"": "cpu"} if one else device_map)

    # Axolotl asks for a mesh of GPUs, and loads the model of rank r on GPU r.
    ParallelismConfig.build_device_mesh = lambda config, device_type: build_mesh(config, "cpu")
    modeling_utils.check_and_set_device_map = on_cpu


def _give_gloo_time() -> None:
    """Before a process group goes, and before the interpreter does.

    A worker thread of gloo needs the GIL to free the tensors of the last collective, and a busy
    machine may keep it waiting. Who frees the group waits for that thread, and holds the GIL: the
    rank hangs. Once the interpreter is on its way out, asking for the GIL ends the rank: "terminate
    called without an active exception".
    """
    from torch import distributed

    destroy = distributed.destroy_process_group

    def destroy_later(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.5)
        destroy(*args, **kwargs)

    distributed.destroy_process_group = destroy_later
    # The first that is registered is the last that is called.
    atexit.register(time.sleep, 0.5)


def _prepare_backend(state: Any, *args: object, **kwargs: object) -> tuple[str, str]:
    """The backend, and the kind of rank that accelerate is to take this one for.

    MULTI_CPU is what it is, and enough for plain data parallelism and DeepSpeed. accelerate finds
    it by itself under ``use_cpu``, which Axolotl does not have: there it finds no backend, and
    takes each rank for the only one.

    MULTI_GPU for FSDP, because accelerate shards over accelerators alone: on CPU ranks it ignores
    its FSDP config, and copies the whole model to each.
    """
    from accelerate.utils import DistributedType

    if os.environ.get("DS_ACCELERATOR") == "cpu":
        gather_without_compiling()
    if os.environ.get("ACCELERATE_USE_FSDP") != "true":
        return "gloo", DistributedType.MULTI_CPU
    _shard_on_cpu(state)
    return "gloo", DistributedType.MULTI_GPU


def gather_without_compiling() -> None:
    """Have DeepSpeed gather by what gloo can do."""
    import deepspeed

    # It would compile an operator for shared memory.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # Under ZeRO-1 and 2, DeepSpeed 0.18 gathers the weights into one tensor while gradients are on;
    # PyTorch does that on gloo by writing into parts of it, which autograd forbids.
    deepspeed.comm.has_all_gather_into_tensor = lambda: False


def _shard_on_cpu(state: Any) -> None:
    """What accelerate does by itself for the kinds of ranks whose devices it can find."""
    import torch

    state.device = torch.device("cpu")
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    # Offloaded parameters are pinned for the copy to a GPU; without one, PyTorch cannot.
    torch.Tensor.pin_memory = lambda tensor, *args: tensor
