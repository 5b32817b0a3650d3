"""eps: what one coordinate of the noise is drawn from.

A distribution is a function ``(shape, generator) -> Tensor``: i.i.d. float32 draws on the
generator's device, of zero mean and **variance 1/3**, so that alpha means the same energy whatever
the distribution. All randomness comes from the generator that is passed in.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

VARIANCE = 1 / 3
"""Variance of every distribution: that of U(-1, 1), which NEFTune draws from."""


def uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """U(-1, 1), as in the NEFTune paper.

    Args:
        shape: Shape of the draw.
        generator: Source of randomness; its device is the draw's.

    Returns:
        float32 tensor with ``|eps| <= 1``, mean 0, variance 1/3.
    """
    draw = torch.empty(shape, device=generator.device, dtype=torch.float32)
    return draw.uniform_(-1.0, 1.0, generator=generator)


def gaussian(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """N(0, 1/3). The N(0, 1) of the literature is ``alpha * sqrt(3)``.

    Args:
        shape: Shape of the draw.
        generator: Source of randomness; its device is the draw's.

    Returns:
        float32 tensor, unbounded, mean 0, variance 1/3.
    """
    draw = torch.empty(shape, device=generator.device, dtype=torch.float32)
    return draw.normal_(0.0, VARIANCE**0.5, generator=generator)


def rademacher(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """+-1/sqrt(3) with equal probability: the same energy in every draw.

    Args:
        shape: Shape of the draw.
        generator: Source of randomness; its device is the draw's.

    Returns:
        float32 tensor with ``|eps| = 1/sqrt(3)``, mean 0, variance 1/3.
    """
    draw = torch.empty(shape, device=generator.device, dtype=torch.float32)
    return draw.random_(0, 2, generator=generator).mul_(2.0).sub_(1.0).mul_(VARIANCE**0.5)
