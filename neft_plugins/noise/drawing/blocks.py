"""The operation in plain torch: rows are taken in blocks that stay in a CPU's cache.

It serves CPUs and MPS, and on any device the distributions of third parties.
"""

import json
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from neft_plugins import registry
from neft_plugins.noise.scale import noise_scale, relative_noise_scale
from neft_plugins.noise.seeds import block_seed

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
    arguments: str = "{}",
) -> Tensor:
    """Add the noise, block by block. Each block has a generator of its own seed.

    So a block in which no token gets noise is not drawn for, and the others are what they were.

    Args:
        clean: (N, d).
        noisy: (N, d), where to write; may be ``clean``.
        lengths: (N,) int64, L of each token that gets noise, 0 of the others.
        alpha: 0-dim float32 on the device of ``clean``.
        seed: Of the draw.
        distribution: Registered name of eps's distribution.
        relative: Whether alpha is the noise-to-signal ratio.
        arguments: The distribution's, as JSON.

    Returns:
        (2, N) float32: the energies of each token's noise and embedding; 0 where no noise is.

    Raises:
        ValueError: If the distribution draws another shape or dtype.
        RegistryError: If it raises.
    """
    tokens, d = clean.shape
    rows = max(1, (CPU_BLOCK if clean.device.type == "cpu" else DEVICE_BLOCK) // d)
    if noisy is not clean:
        noisy.copy_(clean)  # at once, which a CPU does on all its threads
    noised = lengths > 0
    energies = torch.zeros((2, tokens), dtype=torch.float32, device=clean.device)
    scales = lengths if relative else noise_scale(lengths, d).mul_(alpha)
    draw = load_distribution(distribution, arguments)
    generator = torch.Generator(clean.device)
    for block, first in enumerate(range(0, tokens, rows)):
        here = slice(first, first + rows)
        # Elsewhere this would wait for the device.
        if noised.device.type == "cpu" and not noised[here].any():
            continue
        values, scale = noisy[here], scales[here]
        of_noise, of_values = energies[:, here].unbind()
        _norms(values, of_values)
        if relative:
            scale = relative_noise_scale(scale, of_values, d).mul_(alpha)
        try:
            eps = draw(values.shape, generator.manual_seed(block_seed(seed, block)))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise registry.failure("distribution", distribution, error) from error
        _check(eps, values.shape, distribution)
        noise = eps.mul_(scale.unsqueeze(-1))
        torch.linalg.vector_norm(noise, dim=-1, out=of_noise)
        # In one dtype: a sum of two is several times as slow.
        torch.add(values, noise.to(values.dtype), out=values)
    energies[1].mul_(noised)
    return energies.square_()


def load_distribution(name: str, arguments: str) -> Callable[..., Tensor]:
    """The distribution of a registered name, with its arguments, which are JSON."""
    given = json.loads(arguments)
    draw = registry.load("distribution", name)
    return partial(draw, **given) if given else draw


def _norms(values: Tensor, out: Tensor) -> None:
    """The L2 norm of each row, in float32."""
    if values.dtype == torch.float64:  # which torch does not narrow
        out.copy_(torch.linalg.vector_norm(values, dim=-1))
    else:
        torch.linalg.vector_norm(values, dim=-1, dtype=torch.float32, out=out)


def _check(eps: Tensor, shape: torch.Size, distribution: str) -> None:
    if eps.shape != shape or eps.dtype != torch.float32:
        raise ValueError(
            f"The distribution '{distribution}' must draw float32 of shape {tuple(shape)}; got "
            f"{eps.dtype} of shape {tuple(eps.shape)}."
        )
