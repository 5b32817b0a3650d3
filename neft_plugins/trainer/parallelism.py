"""Which part of the data a process of accelerate has, and with whom it shares its rows."""

from typing import Any, NamedTuple

from accelerate.state import AcceleratorState, is_initialized
from transformers import TrainingArguments

from neft_plugins import _compat
from neft_plugins.model.shards import SequenceShards, context_parallel_shards, contiguous_shards


class Place(NamedTuple):
    """A process's place among the ranks of a run.

    Attributes:
        data_rank: Which of the batches it is given.
        data_world_size: How many there are at a time.
        shards: The ranks among which each row of that batch is cut, if any.
    """

    data_rank: int
    data_world_size: int
    shards: SequenceShards | None


def find_place(args: TrainingArguments, contiguous: bool = False) -> Place:
    """This process's place.

    Tensor-parallel ranks are given the same batch, so they draw the same noise; context-parallel
    (``cp_size``) and sequence-parallel (``sp_size``) ones are given parts of it. accelerate numbers
    ranks with these innermost, ``(dp_replicate, dp_shard, cp, sp, tp)``.

    Args:
        args: The Trainer's arguments.
        contiguous: Whether the host cuts rows by itself, into contiguous parts, and not by torch's
            ``context_parallel``.

    Returns:
        The place.
    """
    sizes = getattr(args, "parallelism_config", None)
    if sizes is None and is_initialized():  # from the launcher, Axolotl, or the model
        sizes = AcceleratorState().parallelism_config
    tensor, context, sequence = (
        getattr(sizes, size, 1) or 1 for size in ("tp_size", "cp_size", "sp_size")
    )
    ranks = tensor * context * sequence
    shards = None
    if context > 1:
        meshes: Any = AcceleratorState().device_mesh
        mesh = meshes["cp"]
        shards = (
            contiguous_shards(mesh.get_group()) if contiguous else context_parallel_shards(mesh)
        )
    elif sequence > 1:
        shards = contiguous_shards(_compat.sequence_parallel_group())
    return Place(args.process_index // ranks, args.world_size // ranks, shards)
