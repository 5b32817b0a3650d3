"""What the noise was: sums gathered on the device, and the numbers made of them."""

from typing import NamedTuple

import torch
from torch import Tensor


class NoiseStats(NamedTuple):
    """The noise of some forward passes.

    Attributes:
        noise_rms: RMS of the noise over the coordinates of noised tokens.
        noise_to_signal: Noise RMS over embedding RMS of the noised tokens.
        noised_tokens: Noised tokens as a fraction of real tokens.
    """

    noise_rms: float
    noise_to_signal: float
    noised_tokens: float


def no_sums(device: torch.device | None = None) -> Tensor:
    """The sums of no forward pass, from which to add up."""
    return torch.zeros(5, dtype=torch.float64, device=device)


def measure(noise: Tensor, token_norms: Tensor, noised: Tensor, real: Tensor) -> Tensor:
    """Sums from which ``summarise`` makes the stats; they add up over passes and embeddings.

    Args:
        noise: (..., D) float32.
        token_norms: (...) float32, L2 norms of the clean embeddings.
        noised: (...) bool, the tokens that get noise.
        real: Any shape, bool, the tokens that are not padding.

    Returns:
        (5,) float64 on the noise's device: noise energy, signal energy of noised tokens,
        coordinates noised, noised tokens, and real tokens.
    """
    noise_energy = torch.linalg.vector_norm(noise, dim=-1).square().sum(dtype=torch.float64)
    signal_energy = (token_norms.square() * noised).sum(dtype=torch.float64)
    tokens = noised.sum(dtype=torch.float64)
    coordinates = tokens * noise.shape[-1]
    return torch.stack(
        [noise_energy, signal_energy, coordinates, tokens, real.sum(dtype=torch.float64)]
    )


def summarise(sums: Tensor) -> NoiseStats:
    """The stats of summed-up forward passes. Waits for the device.

    Args:
        sums: (5,) from ``measure``, added up.

    Returns:
        The stats; 0 where no token was noised.
    """
    noise, signal, coordinates, tokens, real = sums.tolist()
    if tokens == 0:
        return NoiseStats(0.0, 0.0, 0.0)
    return NoiseStats(
        noise_rms=(noise / coordinates) ** 0.5,
        noise_to_signal=(noise / signal) ** 0.5 if signal else float("inf"),
        noised_tokens=tokens / real,
    )
