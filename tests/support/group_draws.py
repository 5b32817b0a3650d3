"""Draws of groups of any number, by a kernel of the tests' own around the kernel's helpers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from neft_plugins.noise.drawing.kernel import _draw, _unit


@triton.jit
def _draw_kernel(
    out_ptr,
    first_ptr,
    seed_ptr,
    pass_ptr,
    call,
    DISTRIBUTION: tl.constexpr,  # noqa: N803
    GROUPS: tl.constexpr,  # noqa: N803
):
    number = tl.load(first_ptr) + tl.arange(0, GROUPS)[None, :]
    eps = _draw(tl.load(seed_ptr), number, tl.load(pass_ptr), call, DISTRIBUTION)
    eps = tl.reshape(eps, (1, GROUPS * 8)) * _unit(DISTRIBUTION)
    tl.store(out_ptr + tl.arange(0, GROUPS * 8)[None, :], eps)


def draw_groups(
    distribution: str, seed: int, first: int, count: int, pass_index: int, call: int, device: str
) -> Tensor:
    """(count, 8): what ``count`` groups draw, of which the first has this number."""
    out = torch.empty((count, 8), dtype=torch.float32, device=device)
    given = [torch.tensor(each, device=device) for each in (first, seed, pass_index)]
    _draw_kernel[(1,)](out, *given, call, DISTRIBUTION=distribution, GROUPS=count)
    return out
