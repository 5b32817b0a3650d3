"""The magnitude of each token's noise, for alpha 1."""

import torch
from torch import Tensor


def noise_scale(lengths: Tensor, hidden_size: int) -> Tensor:
    """``1 / sqrt(L * d)`` (arXiv 2310.05914, section 2).

    Args:
        lengths: (...) int, L: tokens of the document each token belongs to; 0 where no noise is.
        hidden_size: d.

    Returns:
        (...) float32; 0 where ``lengths`` is 0.
    """
    root = torch.sqrt((lengths * hidden_size).to(torch.float32))
    # A reciprocal, and alpha times it: so rounds `float / Tensor`, the built-in's way to its scale.
    return torch.where(lengths > 0, root.reciprocal(), 0.0)


def relative_noise_scale(lengths: Tensor, token_norms: Tensor, hidden_size: int) -> Tensor:
    """``rms(E) * sqrt(3)``, by which alpha is the noise-to-signal ratio.

    Args:
        lengths: (...) int, 0 where no noise is.
        token_norms: (...) float32, the L2 norm of each token's embedding, sqrt(d) times its RMS.
        hidden_size: d.

    Returns:
        (...) float32; with eps of variance 1/3, each token's noise has RMS ``alpha * rms(E)``.
    """
    return torch.where(lengths > 0, (3 / hidden_size) ** 0.5 * token_norms, 0.0)
