"""The noise in blocks of plain torch, against the same in one obvious loop."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from neft_plugins import registry
from neft_plugins.noise import distributions
from neft_plugins.noise.drawing import blocks
from neft_plugins.noise.seeds import block_seed

SEED = 2**62 + 12345
ALPHA = 2.0
BLOCK = 256
DISTRIBUTIONS = ["uniform", "gaussian", "rademacher"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (N, d): several blocks of BLOCK coordinates, the last not whole; a row wider than a block.
SHAPES = [(1000, 1), (100, 7), (31, 33), (29, 64), (3, 288)]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", BLOCK)


@pytest.fixture
def register(monkeypatch) -> Callable[[str, Callable], None]:
    """Have a third party's distribution in the registry."""
    load = registry.load
    known = {}
    monkeypatch.setattr(registry, "load", lambda kind, name: known.get(name) or load(kind, name))
    return known.__setitem__


def add(
    clean: Tensor,
    lengths: Tensor,
    distribution: str = "uniform",
    *,
    alpha: float = ALPHA,
    seed: int = SEED,
    relative: bool = False,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    source = clean.clone()
    noisy = source if in_place else torch.full_like(clean, math.nan)
    how = seed, distribution, relative
    energies = blocks.add_noise(source, noisy, lengths, torch.tensor(alpha), *how)
    assert in_place or torch.equal(source, clean)
    return noisy, energies


def batch(shape: tuple[int, int], dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """Embeddings, and lengths of which some are 0."""
    lengths = torch.randint(0, 4, shape[:1]) * torch.randint(1, 100, shape[:1])
    lengths[0], lengths[1] = 5, 0
    return torch.randn(shape).to(dtype), lengths


def noise_by_loop(distribution: str, clean: Tensor, lengths: Tensor, relative: bool) -> Tensor:
    """(N, d) float32, block by block, each of a generator of its own."""
    tokens, d = clean.shape
    rows = max(1, BLOCK // d)
    noise = torch.zeros(tokens, d)
    for block in range(math.ceil(tokens / rows)):
        own = range(block * rows, min((block + 1) * rows, tokens))
        generator = torch.Generator().manual_seed(block_seed(SEED, block))
        eps = getattr(distributions, distribution)((len(own), d), generator)
        for token, draw in zip(own, eps, strict=True):
            length = int(lengths[token])
            if length and relative:
                noise[token] = ALPHA * math.sqrt(3 / d) * float(clean[token].float().norm()) * draw
            elif length:
                noise[token] = ALPHA / math.sqrt(length * d) * draw
    return noise


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_noise_is_that_of_the_loop(shape, distribution, dtype, relative):
    clean, lengths = batch(shape, dtype)
    noisy, energies = add(clean, lengths, distribution, relative=relative)
    noise = noise_by_loop(distribution, clean, lengths, relative)
    # A scale in its last bit may be rounded the other way; relative noise is of size 2.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(noisy, clean + noise.to(dtype), rtol=2 * unit, atol=8 * unit)
    assert (noisy != clean).float().mean() > 0.3
    signal = clean.float() * (lengths > 0)[:, None]
    direct = torch.stack([noise, signal]).double().square().sum(-1).float()
    torch.testing.assert_close(energies, direct, rtol=2e-5, atol=0)
    in_place, again = add(clean, lengths, distribution, relative=relative, in_place=True)
    assert torch.equal(in_place, noisy)
    assert torch.equal(again, energies)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_noise_is_rounded_once(distribution, dtype):
    clean, lengths = batch((29, 64))
    exact, _ = add(torch.zeros_like(clean), lengths, distribution)
    noisy, _ = add(clean.to(dtype), lengths, distribution)
    assert torch.equal(noisy, clean.to(dtype) + exact.to(dtype))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_threads_change_nothing(distribution, shape, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 2**17)  # enough for torch to share it out
    shape = (2**18 // shape[1], shape[1])
    clean, lengths = batch(shape)
    one, energies = add(clean, lengths, distribution)
    torch.set_num_threads(2)
    two, again = add(clean, lengths, distribution)
    assert torch.equal(two, one)
    assert torch.equal(again, energies)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_changes_nothing(distribution, shape):
    clean, _ = batch(shape)
    everywhere, energies = add(clean, torch.full(shape[:1], 3), distribution)
    for chosen in (slice(0, 1), slice(-1, None), slice(1, None, 2)):
        lengths = torch.zeros(shape[0], dtype=torch.int64)
        lengths[chosen] = 3
        noisy, of_some = add(clean, lengths, distribution)
        there = lengths > 0
        assert torch.equal(noisy[there], everywhere[there])
        assert torch.equal(noisy[~there], clean[~there])
        assert torch.equal(of_some[:, there], energies[:, there])
        assert not of_some[:, ~there].any()


def test_a_block_without_noise_is_not_drawn_for(register):
    drawn = []

    def counted(shape, generator):
        drawn.append(generator.initial_seed())
        return distributions.uniform(shape, generator)

    register("counted", counted)
    shape = (40, 32)  # five blocks of eight tokens
    clean, _ = batch(shape)
    lengths = torch.zeros(40, dtype=torch.int64)
    lengths[[9, 15, 39]] = 3
    noisy, _ = add(clean, lengths, "counted")
    assert drawn == [block_seed(SEED, block) for block in (1, 4)]
    assert torch.equal(noisy, add(clean, lengths, "uniform")[0])
    assert torch.equal(noisy[:8], clean[:8])


def test_a_distribution_of_a_third_party_is_asked_as_ever(register):
    asked = []

    def triangular(shape, generator):
        asked.append((tuple(shape), generator.device.type))
        first, second = torch.rand((2, *shape), generator=generator)
        return (first + second - 1) * 2**0.5

    register("triangular", triangular)
    clean, lengths = torch.zeros(20, 32), torch.full((20,), 4)
    noisy, _ = add(clean, lengths, "triangular")
    assert asked == [((8, 32), "cpu"), ((8, 32), "cpu"), ((4, 32), "cpu")]
    first = triangular((8, 32), torch.Generator().manual_seed(block_seed(SEED, 0)))
    torch.testing.assert_close(noisy[:8], first * (ALPHA / math.sqrt(4 * 32)), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("draw", "got"),
    [
        (lambda shape, generator: torch.zeros(shape[1], shape[0]), r"torch.float32 .* \(32, 8\)"),
        (lambda shape, generator: torch.zeros(shape[-1]), r"torch.float32 of shape \(32,\)"),
        (lambda shape, generator: torch.zeros(shape).double(), r"torch.float64 .* \(8, 32\)"),
    ],
)
def test_another_shape_or_dtype_is_refused(register, draw, got):
    register("wrong", draw)
    message = rf"^The distribution 'wrong' must draw float32 of shape \(8, 32\); got {got}\.$"
    with pytest.raises(ValueError, match=message):
        add(torch.zeros(20, 32), torch.ones(20, dtype=torch.int64), "wrong")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_another_seed_is_another_draw(distribution):
    clean, lengths = torch.zeros(29, 64), torch.ones(29, dtype=torch.int64)
    made = [add(clean, lengths, distribution, seed=seed)[0] for seed in (SEED, SEED - 1000)]
    assert not (made[0] == made[1]).all(dim=1).any()


def test_no_tokens():
    noisy, energies = add(*(each[:0] for each in batch((2, 33))))
    assert noisy.shape == (0, 33)
    assert energies.shape == (2, 0)
