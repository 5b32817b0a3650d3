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
    return torch.zeros(5, dtype=_dtype(device), device=device)


def measure(energies: Tensor, noised: Tensor, real: Tensor, hidden_size: int) -> Tensor:
    """Sums from which ``summarise`` makes the stats; they add up over passes and embeddings.

    Args:
        energies: (2, N) float32, the energies of each token's noise and embedding.
        noised: Any shape, bool, the tokens that get noise.
        real: Any shape, bool, the tokens that are not padding.
        hidden_size: d.

    Returns:
        (5,), as ``no_sums`` on that device: noise energy, signal energy of noised tokens,
        coordinates noised, noised tokens, and real tokens.
    """
    dtype = _dtype(energies.device)
    tokens = noised.sum(dtype=dtype)
    of_noise, of_clean = energies.sum(1, dtype=dtype).unbind()
    return torch.stack([of_noise, of_clean, tokens * hidden_size, tokens, real.sum(dtype=dtype)])


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


def _dtype(device: torch.device | None) -> torch.dtype:
    """MPS has no float64."""
    return torch.float32 if device is not None and device.type == "mps" else torch.float64
