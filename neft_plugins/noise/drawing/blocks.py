"""The operation in plain torch: rows are taken in blocks that stay in a CPU's cache.

It serves CPUs and MPS, and on any device the distributions of third parties.
"""

import torch
from torch import Tensor

from neft_plugins import registry
from neft_plugins.noise.scale import noise_scale, relative_noise_scale

CPU_BLOCK = 9 * 2**14
"""Coordinates in a block on a CPU: what it takes fits in a cache of 2 MiB."""
DEVICE_BLOCK = 2**24
"""And elsewhere, where each block costs some launches."""


def add_noise(
    clean: Tensor,
    noisy: Tensor,
    lengths: Tensor,
    alpha: Tensor,
    seed: int,
    distribution: str,
    relative: bool,
) -> Tensor:
    """Add the noise, block by block. Each block has a generator of its own seed.

    So a block in which no token gets noise is not drawn for, and the others are what they were.

    Args:
        clean: (N, d).
        noisy: (N, d), where to write; may be ``clean``.
        lengths: (N,) int64, L of each token that gets noise, 0 of the others.
        alpha: 0-dim float32 on the device of ``clean``.
        seed: Of the draw; the blocks' are those that follow it.
        distribution: Registered name of eps's distribution.
        relative: Whether alpha is the noise-to-signal ratio.

    Returns:
        (2, N) float32: the energies of each token's noise and embedding; 0 where no noise is.

    Raises:
        ValueError: If the distribution draws another shape or dtype.
    """
    tokens, d = clean.shape
    on_cpu = clean.device.type == "cpu"
    rows = max(1, (CPU_BLOCK if on_cpu else DEVICE_BLOCK) // d)
    norms = torch.zeros((2, tokens), dtype=torch.float32, device=clean.device)
    noised = lengths > 0
    scales = None if relative else noise_scale(lengths, d).mul_(alpha)
    draw = registry.load("distribution", distribution)
    generator = torch.Generator(clean.device)
    for block, first in enumerate(range(0, tokens, rows)):
        here = slice(first, first + rows)
        if on_cpu and not noised[here].any():  # elsewhere this would wait for the device
            if noisy is not clean:
                noisy[here] = clean[here]
            continue
        signal = torch.linalg.vector_norm(clean[here], dim=-1, dtype=torch.float32)
        eps = draw(clean[here].shape, generator.manual_seed(seed + block))
        _check(eps, clean[here].shape, distribution)
        if scales is None:
            scale = relative_noise_scale(lengths[here], signal, d).mul_(alpha)
        else:
            scale = scales[here]
        noise = eps.mul_(scale.unsqueeze(-1))
        torch.linalg.vector_norm(noise, dim=-1, out=norms[0, here])
        torch.mul(signal, noised[here], out=norms[1, here])
        # In one dtype: a sum of two is several times as slow.
        torch.add(clean[here], noise.to(clean.dtype), out=noisy[here])
    return norms.square_()


def _check(eps: Tensor, shape: torch.Size, distribution: str) -> None:
    if eps.shape != shape or eps.dtype != torch.float32:
        raise ValueError(
            f"The distribution '{distribution}' must draw float32 of shape {tuple(shape)}; got "
            f"{eps.dtype} of shape {tuple(eps.shape)}."
        )
