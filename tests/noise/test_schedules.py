"""alpha(t): closed forms, warm-up, end values; and no state."""

import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neft_plugins import NEFTConfig
from neft_plugins.noise import schedules

T = 40
# name -> (schedule_args, f(t) with f(0) = 1)
CLOSED_FORMS = {
    "constant": ({}, lambda t: 1.0),
    "linear": ({}, lambda t: 1 - t / T),
    "cosine": ({}, lambda t: (1 + math.cos(math.pi * t / T)) / 2),
    "polynomial": ({"power": 3}, lambda t: (1 - t / T) ** 3),
    "exponential": ({"decay_rate": 0.1}, lambda t: 0.1 ** (t / T)),
    "step": ({"step_size": 10, "decay_rate": 0.3}, lambda t: 0.3 ** (t // 10)),
}


def build(name: str, *, alpha=5.0, alpha_end=0.0, warmup=0, total=T, args=None):
    config = NEFTConfig(
        alpha=alpha,
        schedule=name,
        schedule_args=CLOSED_FORMS[name][0] if args is None else args,
        alpha_end=alpha_end,
        warmup_steps=warmup,
    )
    return config.build_schedule(total)


def test_doctests():
    assert doctest.testmod(schedules).failed == 0


@pytest.mark.filterwarnings("ignore::neft_plugins.config.NEFTWarning")
@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("alpha_end", [0.0, 1.5])
def test_closed_form_with_an_end_value(name, alpha_end):
    schedule = build(name, alpha_end=alpha_end)
    for t in range(T):
        expected = alpha_end + (5.0 - alpha_end) * CLOSED_FORMS[name][1](t)
        assert schedule(t) == pytest.approx(expected, abs=1e-12), t


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("warmup", [8, 0.2])
def test_warm_up_rises_to_alpha_and_the_schedule_takes_what_is_left(name, warmup):
    whole = build(name, warmup=warmup, total=T + 10)
    rest = build(name, total=T)
    steps = 8 if warmup == 8 else 10
    assert [whole(t) for t in range(steps)] == pytest.approx([5 * t / steps for t in range(steps)])
    shorter = build(name, total=T + 10 - steps)
    for t in range(T):
        assert whole(steps + t) == pytest.approx((rest if steps == 10 else shorter)(t))


# A fraction and a length of training -> steps, neither floor's nor round's.
ROUNDED_UP = [(0.1, 25, 3), (0.1, 21, 3), (0.01, 20, 1), (0.25, 40, 10)]


@pytest.mark.parametrize(("fraction", "total", "steps"), ROUNDED_UP)
def test_a_fraction_of_training_is_rounded_up_as_in_transformers(fraction, total, steps):
    warm = build("linear", warmup=fraction, total=total)
    assert [t for t in range(total) if warm(t) == 5.0] == [steps]
    plateaus = build("step", total=total, args={"step_size": fraction, "decay_rate": 0.5})
    assert next(t for t in range(total) if plateaus(t) < 5.0) == steps
    decay = {"transition_steps": fraction, "decay_rate": 0.5}
    assert build("exponential", total=total, args=decay)(steps) == 2.5


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial"])
def test_the_end_value_holds_after_the_end(name):
    schedule = build(name, alpha_end=1.0)
    assert [schedule(t) for t in (T, T + 1, 10 * T)] == [1.0, 1.0, 1.0]


@pytest.mark.filterwarnings("ignore::neft_plugins.config.NEFTWarning")
@given(
    name=st.sampled_from(sorted(CLOSED_FORMS)),
    alpha=st.floats(0.1, 50),
    fraction=st.floats(0, 1),
    step=st.integers(0, 2 * T),
)
def test_a_schedule_stays_between_its_ends_and_is_pure(name, alpha, fraction, step):
    alpha_end = fraction * alpha
    schedule = build(name, alpha=alpha, alpha_end=alpha_end)
    assert alpha_end - 1e-9 <= schedule(step) <= alpha + 1e-9
    assert schedule(step) == schedule(step) == build(name, alpha=alpha, alpha_end=alpha_end)(step)
    assert schedule(step) >= schedule(step + 1) - 1e-9


# What a config may hold at most and at least, and what lies between.
ALPHAS = st.one_of(st.sampled_from([5e-324, 1e-300, 1, 10**6, 1e6]), st.floats(1e-6, 1e6))
STEPS = st.one_of(st.sampled_from([0, 1, 2**63]), st.integers(0, 2**63))
FRACTIONS = st.floats(0, 1, exclude_min=True, exclude_max=True)
SPANS = st.one_of(st.just(2.0**63), STEPS.filter(bool), FRACTIONS)
RATES = st.one_of(st.sampled_from([5e-324, 1]), st.floats(0, 1, exclude_min=True))
POWERS = st.one_of(st.sampled_from([5e-324, 1e-9, 10**6]), st.floats(1e-6, 1e6))
ARGUMENTS = {
    "polynomial": st.fixed_dictionaries({"power": POWERS}),
    "exponential": st.fixed_dictionaries({"decay_rate": RATES, "transition_steps": SPANS}),
    "step": st.fixed_dictionaries({"decay_rate": RATES, "step_size": SPANS}),
}


@pytest.mark.filterwarnings("ignore::neft_plugins.config.NEFTWarning")
@given(
    given_args=st.sampled_from(sorted(CLOSED_FORMS)).flatmap(
        lambda name: st.tuples(st.just(name), ARGUMENTS.get(name, st.just({})))
    ),
    alpha=ALPHAS,
    alpha_end=st.one_of(st.just(0), ALPHAS),
    warmup=st.one_of(STEPS, FRACTIONS),
    total=STEPS.filter(bool),
    step=STEPS,
)
def test_a_schedule_at_the_bounds_is_a_number_that_float32_holds(
    given_args, alpha, alpha_end, warmup, total, step
):
    name, args = given_args
    schedule = build(name, alpha=alpha, alpha_end=alpha_end, warmup=warmup, total=total, args=args)
    for t in (0, step, total - 1, total, 2**63):
        assert 0 <= torch.tensor(schedule(t), dtype=torch.float32) <= 1.0001e6


def test_a_decay_needs_to_know_how_long_training_is():
    with pytest.raises(ValueError, match="Pass `total_steps`, the number of optimizer steps"):
        NEFTConfig(alpha=5, schedule="cosine").build_schedule(None)
    with pytest.raises(ValueError, match="Pass `total_steps`"):
        NEFTConfig(alpha=5, warmup_steps=0.1).build_schedule(None)
    assert NEFTConfig(alpha=5, warmup_steps=2).build_schedule(None)(1) == 2.5
