"""eps: i.i.d., of mean 0 and variance 1/3; on both paths, in blocks and in the kernel."""

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import Tensor

from neft_plugins.noise import distributions
from neft_plugins.noise.drawing import blocks, operation
from neft_plugins.noise.drawing.operation import Draw
from neft_plugins.noise.seeds import micro_batch_seed

ON_BOTH_PATHS = ["uniform", "gaussian", "rademacher"]
ALL = [*ON_BOTH_PATHS, "sparse"]
PATHS = ["blocks", "interpreter", pytest.param("cuda", marks=pytest.mark.gpu)]
D = 1024  # of which the root is whole, so that the scale is 1
MANY, SOME = (4096, D), (1024, D)
BINS = 256
SEED = 2**62 + 12345


def draw(distribution: str, shape=(5, 7), seed: int = 0, **args) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return getattr(distributions, distribution)(shape, generator, **args)


def at_place(
    kernel: ModuleType | None,
    device: str,
    distribution: str,
    shape: tuple[int, int] = MANY,
    *,
    seed: int = SEED,
    pass_index: int = 0,
    call: int = 0,
) -> Tensor:
    """eps: the noise on embeddings of 0, with a scale of 1."""
    noise = torch.zeros(shape, device=device)
    ones = torch.ones(shape[0], dtype=torch.int64, device=device)
    numbers = torch.tensor(math.sqrt(D)), torch.tensor(seed), torch.tensor(pass_index)
    place = Draw(*(each.to(device) for each in numbers), call)
    if kernel is None:
        operation.add_noise(noise, ones, place, distribution, in_place=True)
    else:
        kernel.add_noise(noise, noise, ones, *place[:4], distribution, False)
    return noise.cpu()


@pytest.fixture(scope="module", params=PATHS)
def draw_on_path(request: pytest.FixtureRequest) -> Iterator[Callable[..., Tensor]]:
    """Draws eps, by its place in a run."""
    if request.param == "blocks":
        yield partial(at_place, None, "cpu")
        return
    pytest.importorskip("triton")
    import interpreter

    if interpreter.is_on() != (request.param == "interpreter"):
        pytest.skip("Triton's interpreter is on, or it is not: one process has either")
    from neft_plugins.noise.drawing import kernel

    with interpreter.like_a_gpu(), pytest.MonkeyPatch.context() as patch:
        if request.param == "interpreter":  # a large tile takes it as long as a small one
            patch.setattr(kernel, "_TILE", 2**18)
        yield partial(at_place, kernel, "cpu" if request.param == "interpreter" else "cuda")


@pytest.fixture(scope="module", params=ON_BOTH_PATHS)
def sample(request: pytest.FixtureRequest, draw_on_path) -> tuple[str, Tensor]:
    """A distribution, and four million draws of it."""
    return request.param, draw_on_path(request.param)


# E eps^2, E eps^4, E eps^8.
MOMENTS = {
    "uniform": (1 / 3, 1 / 5, 1 / 9),
    "gaussian": (1 / 3, 3 / 9, 105 / 81),
    "rademacher": (1 / 3, 1 / 9, 1 / 81),
}


def test_the_moments_are_those_of_the_distribution(sample):
    distribution, eps = sample
    second, fourth, eighth = MOMENTS[distribution]
    eps = eps.double()
    sigma = 1 / math.sqrt(eps.numel())
    rounding = 1e-7
    for found, expected, of_its_square in (
        (eps.mean(), 0, second),
        (eps.square().mean(), second, fourth),
        (eps.pow(4).mean(), fourth, eighth),
    ):
        spread = math.sqrt(max(of_its_square - expected**2, 0))
        assert abs(float(found) - expected) < 5 * spread * sigma + rounding


def chi_square(bins: Tensor) -> float:
    """Of BINS bins that are as probable, less its mean, over its standard deviation."""
    counts = torch.bincount(bins.flatten(), minlength=BINS).double()
    assert len(counts) == BINS
    expected = bins.numel() / BINS
    found = float((counts - expected).square().sum() / expected)
    return (found - (BINS - 1)) / math.sqrt(2 * (BINS - 1))


def test_the_draws_fill_the_distribution(sample):
    distribution, eps = sample
    if distribution == "uniform":
        on_grid = (eps * 2**15 - 0.5).to(torch.int64) + 2**15
        found = [chi_square(on_grid >> 8), chi_square(on_grid & 255)]
    elif distribution == "gaussian":
        place = torch.special.ndtr(eps.double() * math.sqrt(3))
        found = [chi_square((place * BINS).to(torch.int64).clamp(max=BINS - 1))]
        # Within bins too: in the next 8 bits of the same.
        found.append(chi_square((place * BINS**2).to(torch.int64) % BINS))
    else:  # signs, eight at a time
        signs = (eps.view(-1, 8) > 0).to(torch.int64)
        found = [chi_square((signs << torch.arange(8)).sum(1))]
    # On either side: draws that are too even are no draws.
    assert all(abs(each) < 5 for each in found), found


def correlation(one: Tensor, other: Tensor, moment: int = 1) -> float:
    """In standard deviations, of draws (or of their squares) at the same places."""
    one, other = (each - each.mean() for each in (one**moment, other**moment))
    return float((one * other).mean() / (one.std() * other.std())) * math.sqrt(one.numel())


def lags(eps: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    for lag in (1, 2, 3, 4, 8, 16, 64, 128):  # of coordinates, words, and counters
        yield f"{lag} in a row", eps[:, lag:], eps[:, :-lag]
    of_block = blocks.CPU_BLOCK // D
    for lag in (1, 2, of_block, 3 * of_block):
        yield f"{lag} rows", eps[lag:], eps[:-lag]


def test_a_draw_says_nothing_of_the_next(sample):
    distribution, eps = sample
    for name, one, other in lags(eps):
        assert abs(correlation(one, other)) < 5, name
        if distribution != "rademacher":  # whose squares are all alike
            assert abs(correlation(one, other, moment=2)) < 5, name


def at_all_shifts(one: Tensor, other: Tensor) -> Tensor:
    """The correlation of one with the other turned by 0, 1, ... places, in standard deviations."""
    one, other = (torch.fft.rfft(each.flatten().double() * math.sqrt(3)) for each in (one, other))
    count = 2 * (len(one) - 1)
    return torch.fft.irfft(one * other.conj(), n=count) / math.sqrt(count)


def test_no_draw_is_another_one_shifted(sample):
    _, eps = sample
    found = at_all_shifts(eps[: SOME[0]], eps[: SOME[0]])
    assert float(found[0]) == pytest.approx(math.sqrt(found.numel()), rel=1e-2)
    # The largest of a million: 5 or so; 7 by chance in one of a million times.
    assert found[1:].abs().max() < 7
    assert at_all_shifts(eps[: SOME[0]], eps[-SOME[0] :]).abs().max() < 7


@pytest.mark.parametrize("distribution", ON_BOTH_PATHS)
def test_neighbours_in_a_run_have_draws_of_their_own(draw_on_path, distribution):
    first = draw_on_path(distribution, SOME)
    assert torch.equal(first, draw_on_path(distribution, SOME))
    neighbours = {
        "seed": {"seed": SEED + 1},
        "the seed's upper half": {"seed": SEED - 2**32},
        "pass": {"pass_index": 1},
        "call": {"call": 1},
    }
    for name, place in neighbours.items():
        found = at_all_shifts(first, draw_on_path(distribution, SOME, **place))
        assert abs(float(found[0])) < 5, name
        assert found.abs().max() < 7, name


@pytest.mark.parametrize("distribution", ON_BOTH_PATHS)
def test_neighbouring_steps_have_draws_of_their_own(draw_on_path, distribution):
    keys = [(42, 7, 3), (42, 8, 3), (42, 7, 4), (43, 7, 3)]
    first, *others = (draw_on_path(distribution, SOME, seed=micro_batch_seed(*key)) for key in keys)
    for other in others:
        assert at_all_shifts(first, other).abs().max() < 7


GRID = (torch.arange(-(2**15), 2**15, dtype=torch.float64) + 0.5) / 2**15


def test_uniform_is_drawn_from_its_grid_and_from_all_of_it(sample):
    distribution, eps = sample
    if distribution == "uniform":
        assert torch.equal(eps.unique().double(), GRID)


def test_the_grid_is_symmetric_and_its_variance_a_third(monkeypatch):
    every = torch.arange(-(2**15), 2**15).to(torch.int16)
    monkeypatch.setattr(distributions, "_bits", lambda shape, generator, each: every)
    eps = draw("uniform", (2**16,)).double()
    assert torch.equal(eps, GRID)
    assert torch.equal(eps, -eps.flip(0))
    assert float(eps.abs().max()) == 1 - 2**-16
    assert float(eps.square().mean()) == pytest.approx((1 - 2**-32) / 3, rel=1e-14, abs=0)


def test_bounds(sample):
    distribution, eps = sample
    largest = float(eps.abs().max())
    if distribution == "rademacher":
        assert eps.unique().tolist() == pytest.approx([-(3**-0.5), 3**-0.5], rel=1e-7)
    elif distribution == "uniform":
        assert largest < 1
    else:  # 4.5 to 6.8 standard deviations: more than 32 bits do not give
        assert 2.6 < largest < 3.95


FRACTIONS = [2**-16, 1.6 * 2**-16, 0.1, 0.25, 1 / 3, 0.999999, 1, 1.0]


@pytest.mark.parametrize("p", FRACTIONS)
def test_sparse_has_the_energy_of_uniform_to_the_last_digit(p, monkeypatch):
    every = torch.arange(-(2**15), 2**15).to(torch.int16)
    order = torch.randperm(2**16, generator=torch.Generator().manual_seed(0))
    halves = torch.cat([every, every[order]])
    monkeypatch.setattr(distributions, "_bits", lambda shape, generator, each: halves)
    eps = draw("sparse", (2**16,), p=p).double()
    noised = eps != 0
    # kept/2^16 of the coordinates, each of 2^16/kept times the variance of uniform.
    kept = int(noised.sum())
    assert kept == max(1, round(p * 2**16))
    unit = eps * math.sqrt(kept / 2**16)
    assert unit[noised].tolist() == pytest.approx(GRID[noised].tolist(), rel=1e-6, abs=0)


@pytest.fixture(scope="module", params=[0.1, 0.5], ids="p = {}".format)
def sparse_sample(request: pytest.FixtureRequest) -> tuple[float, Tensor]:
    """A fraction, and four million draws with it."""
    return request.param, draw("sparse", MANY, SEED, p=request.param)


def test_the_moments_of_sparse(sparse_sample):
    p, eps = sparse_sample
    eps, noised = eps.double(), (eps != 0).double()
    sigma = 1 / math.sqrt(eps.numel())
    for found, expected, of_its_square in (
        (noised.mean(), p, p),
        (eps.mean(), 0, 1 / 3),
        (eps.square().mean(), 1 / 3, 1 / (5 * p)),
        (eps.pow(4).mean(), 1 / (5 * p), 1 / (9 * p**3)),
    ):
        rounding = 2**-16  # of p
        spread = math.sqrt(of_its_square - expected**2)
        assert abs(float(found) - expected) < 5 * spread * sigma + rounding
    assert float(eps.abs().max()) < p**-0.5 * (1 + rounding)


def test_the_noised_coordinates_of_sparse_are_any_and_their_noise_uniform(sparse_sample):
    p, eps = sparse_sample
    noised = eps != 0
    on_grid = (eps[noised].double() * math.sqrt(round(p * 2**16)) * 2**7).floor().long() + 2**15
    found = [chi_square(on_grid >> 8), chi_square(on_grid & 255)]
    if p == 0.5:
        found.append(chi_square((noised.view(-1, 8).long() << torch.arange(8)).sum(1)))
    assert all(abs(each) < 5 for each in found), found
    for name, one, other in lags(eps):
        assert abs(correlation(one, other)) < 5, name
        assert abs(correlation(one, other, moment=2)) < 5, name
    for name, one, other in lags(noised.float()):
        assert abs(correlation(one, other)) < 5, name


@pytest.mark.parametrize("p", [0, -0.1, 1.5, 2**-17, 0.0, math.nan, math.inf, True, "0.1", None])
def test_a_fraction_that_sparse_does_not_take(p):
    message = (
        "`p` must be a number from 2**-16 to 1, the fraction of coordinates that are noised; "
        f"got {p!r}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw("sparse", p=p)


@pytest.mark.parametrize("distribution", ALL)
def test_only_the_generator_matters(distribution):
    state = torch.get_rng_state()
    first = draw(distribution, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, draw(distribution, seed=3))
    assert not torch.equal(first, draw(distribution, seed=4))
    assert first.dtype == torch.float32
    assert first.shape == (5, 7)


@pytest.mark.parametrize("d", [1, 7, 16, 33, 64, 288, 5000])
@pytest.mark.parametrize("distribution", ALL)
def test_a_row_draws_the_same_however_many_are_drawn(distribution, d):
    many = draw(distribution, (12, d))
    for rows in (1, 2, 7):
        assert torch.equal(draw(distribution, (rows, d)), many[:rows])
    assert torch.equal(draw(distribution, (d,)), many[0])
    assert torch.equal(draw(distribution, (3, 4, d)), many.view(3, 4, d))


@pytest.mark.parametrize("distribution", ALL)
def test_the_default_dtype_changes_nothing(distribution, monkeypatch):
    first = draw(distribution, (12, 33))
    distributions._signs.cache_clear()  # made anew, under the other default
    torch.set_default_dtype(torch.float64)
    try:
        again = draw(distribution, (12, 33))
    finally:
        torch.set_default_dtype(torch.float32)
        distributions._signs.cache_clear()
    assert again.dtype == torch.float32
    assert torch.equal(again, first)
