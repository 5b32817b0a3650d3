"""SequenceShards: rows of a batch that are cut into parts, one on each context-parallel rank."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from neft_plugins import _compat

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class SequenceShards:
    """The ranks that hold the parts of the same rows, and how a row is put together again.

    Attributes:
        rank: This process's rank among them.
        size: Number of ranks, S.
        gather: A collective: from (N, T / S) int64 on each rank to (N, T), in the order of the row.
    """

    rank: int
    size: int
    gather: Callable[[Tensor], Tensor]

    def join(self, batch: Mapping[str, Any], ids: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Put the rows together, by one collective.

        Args:
            batch: What this rank's model was given: its part of each (B, T / S) tensor.
            ids: (B, T / S), this rank's tokens.

        Returns:
            The batch of the whole rows, ``input_ids`` among it, each of its integers an int64; and
            (T / S,) int64, where this rank's tokens are in them.
        """
        rows, width = ids.shape
        parts = {"input_ids": ids} | {
            key: value
            for key, value in batch.items()
            if isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == width
        }
        owner = torch.arange(width, device=ids.device) + self.rank * width
        stacked = [part.expand(rows, width).to(torch.int64) for part in parts.values()]
        joined = self.gather(torch.cat([owner.unsqueeze(0), *stacked]))
        own = joined[0].argsort()[self.rank * width : (self.rank + 1) * width]
        return {**batch, **dict(zip(parts, joined[1:].split(rows), strict=True))}, own


def contiguous_shards(group: "dist.ProcessGroup") -> SequenceShards:
    """Rank r of S holds the r-th of S equal parts: Axolotl, and DeepSpeed's Ulysses.

    Args:
        group: The ranks that hold parts of the same rows.

    Returns:
        The shards.
    """
    size = dist.get_world_size(group)

    def gather(part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(size)]
        dist.all_gather(parts, part.contiguous(), group=group)
        return torch.cat(parts, dim=1)

    return SequenceShards(dist.get_rank(group), size, gather)


def context_parallel_shards(mesh: "DeviceMesh") -> SequenceShards:
    """As ``torch.distributed.tensor.experimental.context_parallel`` cuts rows: accelerate.

    Where T is a multiple of 2 S, rank r holds part r and part 2 S - 1 - r of 2 S, so that causal
    attention is as much work on each rank.

    Args:
        mesh: (S,), the ranks that hold parts of the same rows.

    Returns:
        The shards, to be joined within that context.
    """

    def gather(part: Tensor) -> Tensor:
        return _compat.unshard(mesh, part)

    return SequenceShards(mesh.get_local_rank(), mesh.size(), gather)
