"""eps: i.i.d., zero mean, variance 1/3, from the generator alone."""

import math

import pytest
import torch

from neft_plugins.noise import distributions

ALL = [distributions.uniform, distributions.gaussian, distributions.rademacher]
N = 400_000


def draw(distribution, seed: int = 0, shape=(N,)):
    return distribution(shape, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("distribution", ALL)
def test_mean_is_zero_and_variance_a_third(distribution):
    eps = draw(distribution).double()
    kurtosis = {"uniform": 1.8, "gaussian": 3.0, "rademacher": 1.0}[distribution.__name__]
    sigma_of_variance = math.sqrt(max(kurtosis - 1, 1e-9) / N) / 3
    assert abs(eps.mean()) < 5 * math.sqrt(1 / 3 / N)
    assert abs(eps.square().mean() - 1 / 3) < 5 * sigma_of_variance + 1e-7
    assert eps.pow(4).mean() / eps.square().mean() ** 2 == pytest.approx(kurtosis, rel=0.02)


def test_bounds():
    assert draw(distributions.uniform).abs().max() <= 1
    assert draw(distributions.rademacher).unique().tolist() == pytest.approx([-(3**-0.5), 3**-0.5])
    assert draw(distributions.gaussian).abs().max() > 1.5


@pytest.mark.parametrize("distribution", ALL)
def test_coordinates_are_independent(distribution):
    eps = draw(distribution, shape=(400, 1000)).double()
    for a, b in [(eps[1:], eps[:-1]), (eps[:, 1:], eps[:, :-1])]:
        correlation = (a * b).mean() / (1 / 3)
        assert abs(correlation) < 5 / math.sqrt(a.numel())


@pytest.mark.parametrize("distribution", ALL)
def test_only_the_generator_matters(distribution):
    state = torch.get_rng_state()
    first = draw(distribution, seed=3, shape=(5, 7))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, draw(distribution, seed=3, shape=(5, 7)))
    assert not torch.equal(first, draw(distribution, seed=4, shape=(5, 7)))
    assert first.dtype == torch.float32
    assert first.shape == (5, 7)
