"""What other packages register: what is wrong with it is said, by its name, before training."""

import re

import pytest
import torch
from reference import Embedder
from variants import register

from neft_plugins import NEFTConfig, attach_neft, registry
from neft_plugins.config import NEFTWarning

IDS = torch.arange(1, 13).view(2, 6) % 9


def attach(**options):
    return attach_neft(Embedder(8), NEFTConfig(alpha=5.0, **options))


def normal(shape, generator):
    return torch.randn(shape, generator=generator)


def laplace(shape, generator):
    """Heavy tails, and the right variance."""
    u = torch.rand(shape, generator=generator).sub_(0.5).mul_(0.999999)
    return -((1 / 6) ** 0.5) * u.sign() * torch.log1p(-2 * u.abs())


def positive(shape, generator):
    return torch.rand(shape, generator=generator) * 2


def test_a_distribution_of_mean_0_and_variance_one_third_is_taken(monkeypatch):
    name = register(monkeypatch, "distribution", laplace)
    model = Embedder(8)
    with attach_neft(model, NEFTConfig(alpha=5.0, distribution=name)) as neft:
        model(input_ids=IDS)
        assert neft.metrics()["neft/noised_tokens"] == 1


@pytest.mark.parametrize(
    ("function", "has"),
    [(normal, r"mean .* and variance 0\.997"), (positive, r"mean 1 and variance 0\.33")],
)
def test_another_mean_or_variance_is_warned_of_once(monkeypatch, function, has):
    name = register(monkeypatch, "distribution", function)
    message = rf"The distribution '{name}' of extras 2.0 has {has}.* not 0 and 1/3, so alpha is not"
    with pytest.warns(NEFTWarning, match=message):
        attach(distribution=name)
    attach(distribution=name)  # a warning is an error


def test_numbers_that_are_not_finite_are_refused(monkeypatch):
    name = register(monkeypatch, "distribution", lambda s, g: torch.full(s, float("inf")))
    with pytest.raises(ValueError, match=f"'{name}' of extras 2.0 draws numbers that are not fin"):
        attach(distribution=name)


def test_the_global_generator_is_left_alone(monkeypatch):
    name = register(monkeypatch, "distribution", laplace)
    model = Embedder(8)
    before = torch.random.get_rng_state()
    attach_neft(model, NEFTConfig(alpha=5.0, distribution=name))
    assert torch.equal(torch.random.get_rng_state(), before)


def broken(*args, **kwargs):
    raise KeyError("table")


def breaks_at_step_3(alpha, alpha_end, decay_steps):
    return lambda step: alpha / (3 - step)


@pytest.mark.parametrize(
    ("kind", "option", "function"),
    [
        ("distribution", "distribution", broken),
        ("schedule", "schedule", breaks_at_step_3),
        ("tokens", "tokens", broken),
    ],
)
def test_one_that_raises_is_named_with_its_package(monkeypatch, kind, option, function):
    name = register(monkeypatch, kind, function)
    raised = "ZeroDivisionError: .*division" if kind == "schedule" else "KeyError: 'table'"
    what = "token rule" if kind == "tokens" else kind
    message = rf"The {what} '{name}' of extras 2\.0 raised {raised}.*\. Repair that package, or"
    model = Embedder(8)

    def train():
        with attach_neft(model, NEFTConfig(alpha=5.0, **{option: name}), total_steps=9) as neft:
            neft.set_step(3)
            model(input_ids=IDS)

    with pytest.raises(registry.RegistryError, match=message) as error:
        train()
    assert isinstance(error.value.__cause__, (KeyError, ZeroDivisionError))


def fails_for_d_8(shape, generator):
    return laplace(shape, generator) if shape[-1] > 8 else broken()


@pytest.mark.filterwarnings("ignore::neft_plugins.config.NEFTWarning")
def test_a_distribution_that_raises_in_training_is_named(monkeypatch):
    name = register(monkeypatch, "distribution", fails_for_d_8)
    model = Embedder(8)
    with attach_neft(model, NEFTConfig(alpha=5.0, distribution=name)):
        with pytest.raises(registry.RegistryError, match=f"'{name}' of extras 2.0 raised KeyErr"):
            model(input_ids=IDS)


@pytest.mark.parametrize("kind", ["distribution", "schedule"])
def test_one_that_cannot_be_made_is_named(monkeypatch, kind):
    name = register(monkeypatch, kind, lambda a, b, *rest, factor=1.0: broken())
    options = {kind: name, f"{kind}_args": {"factor": 2.0}}
    with pytest.raises(registry.RegistryError, match=f"'{name}' of extras 2.0 raised KeyError"):
        NEFTConfig(alpha=5.0, **options)


@pytest.mark.parametrize(
    ("kind", "function", "message"),
    [
        (
            "distribution",
            lambda shape, generator: laplace(shape, generator).double(),
            "'{}' must draw float32 of shape (12, 8); got torch.float64 of shape (12, 8)",
        ),
        (
            "distribution",
            lambda shape, generator: laplace(shape[:1], generator),
            "'{}' must draw float32 of shape (12, 8); got torch.float32 of shape (12,)",
        ),
        (
            "tokens",
            lambda tokens: tokens.input_ids,
            "'{}' must give a bool mask of shape (2, 6); got torch.int64 of shape (2, 6)",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::neft_plugins.config.NEFTWarning")
def test_what_one_returns_is_checked(monkeypatch, kind, function, message):
    name = register(monkeypatch, kind, function)
    model = Embedder(8)
    with attach_neft(model, NEFTConfig(alpha=5.0, **{kind: name})):
        with pytest.raises(ValueError, match=re.escape(message.format(name))):
            model(input_ids=IDS)
