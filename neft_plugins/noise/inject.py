"""The equation: E' = E + m * g * alpha(t) / sqrt(L * D) * eps.

What changes from draw to draw comes in as 0-dim CPU tensors, and eps is drawn by a registered
operator, so that a compiled graph stays whole and is not compiled again when they change.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from neft_plugins import registry
from neft_plugins.noise import seeds


class Draw(NamedTuple):
    """Which draw, and how strong.

    Attributes:
        alpha: 0-dim float32 on the CPU, alpha(t).
        seed: 0-dim int64 on the CPU, the micro-batch's seed at this embedding.
        pass_index: 0-dim int64 on the CPU, which of the micro-batch's noisy forward passes.
        call: Which call of the embedding in that pass.
    """

    alpha: Tensor
    seed: Tensor
    pass_index: Tensor
    call: int


def noise_scale(lengths: Tensor, hidden_size: int) -> Tensor:
    """Magnitude of each token's noise for alpha 1, ``1 / sqrt(L * D)`` (arXiv 2310.05914).

    Args:
        lengths: (B, T) int, tokens of the document each token belongs to; 0 on padding.
        hidden_size: D.

    Returns:
        (B, T) float32; 0 where ``lengths`` is 0.
    """
    root = torch.sqrt((lengths.clamp(min=1) * hidden_size).to(torch.float32))
    # A reciprocal, and alpha times it: so rounds `float / Tensor`, the built-in's way to its scale.
    return torch.where(lengths > 0, root.reciprocal(), 0.0)


def relative_noise_scale(token_norms: Tensor, hidden_size: int) -> Tensor:
    """Magnitude by which alpha is the noise-to-signal ratio, ``rms(E) * sqrt(3)`` for alpha 1.

    Args:
        token_norms: (B, T) float32, the L2 norm of each token's embedding, sqrt(D) times its RMS.
        hidden_size: D.

    Returns:
        (B, T) float32. With eps of variance 1/3, each token's noise has RMS ``alpha * rms(E)``.
    """
    return (3 / hidden_size) ** 0.5 * token_norms


def token_norms(embeddings: Tensor) -> Tensor:
    """(..., D) embeddings of any dtype -> (...) float32 L2 norms, without a gradient."""
    return torch.linalg.vector_norm(embeddings.detach(), dim=-1, dtype=torch.float32)


@torch.library.custom_op("neft_plugins::draw_noise", mutates_args=())
def draw_noise(
    embeddings: Tensor,
    scale: Tensor,
    alpha: Tensor,
    seed: Tensor,
    pass_index: Tensor,
    call: int,
    distribution: str,
) -> Tensor:
    """Draw the noise: ``alpha * scale * eps``.

    Args:
        embeddings: (..., D), gives shape and device.
        scale: (...) float32, each token's magnitude for alpha 1, 0 where there is no noise.
        alpha: As in ``Draw``; where it is 0 nothing is drawn.
        seed: As in ``Draw``; on the CPU, so that reading it does not wait for a GPU.
        pass_index: As in ``Draw``.
        call: As in ``Draw``.
        distribution: Registered name of eps's distribution.

    Returns:
        (..., D) float32.
    """
    if alpha == 0:
        return torch.zeros_like(embeddings, dtype=torch.float32)
    source = seeds.generator(seeds.draw_seed(int(seed), int(pass_index), call), embeddings.device)
    eps = registry.load("distribution", distribution)(embeddings.shape, source)
    if eps.shape != embeddings.shape or eps.dtype != torch.float32:
        raise ValueError(
            f"The distribution '{distribution}' must draw float32 of shape "
            f"{tuple(embeddings.shape)}; got {eps.dtype} of shape {tuple(eps.shape)}."
        )
    return eps.mul_((scale * alpha).unsqueeze(-1))


@draw_noise.register_fake
def _(embeddings: Tensor, *how: object) -> Tensor:
    return torch.empty_like(embeddings, dtype=torch.float32, memory_format=torch.contiguous_format)


def add_noise(
    embeddings: Tensor, scale: Tensor, draw: Draw, distribution: str
) -> tuple[Tensor, Tensor]:
    """Add float32 noise in the embeddings' dtype; the gradient passes unchanged.

    Args:
        embeddings: (..., D), any floating dtype.
        scale: (...) float32, each token's magnitude for alpha 1.
        draw: Which draw, and how strong.
        distribution: Registered name of eps's distribution.

    Returns:
        The noisy embeddings, of the same shape and dtype, and the noise, (..., D) float32.
    """
    noise = draw_noise(embeddings.detach(), scale, *draw, distribution)
    return embeddings + noise.to(embeddings.dtype), noise
