"""alpha(t): how strong the noise is at optimizer step t.

A schedule is built by a function ``(alpha, alpha_end, decay_steps, **schedule_args)`` and is
itself a pure function of the step, ``Schedule = Callable[[int], float]``; it holds no state, so a
resumed run needs none. Each one is ``alpha_end + (alpha - alpha_end) * f(s)`` with ``f(0) = 1``,
where ``s = t - warmup_steps`` are the steps since the warm-up, and ``decay_steps = total_steps -
warmup_steps``.
"""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]

MAX_NUMBER = 1e6
"""The largest alpha, alpha_end and power: far above any use, and far from float32's end."""
MAX_STEPS = 2**63
"""The largest number of steps."""


def constant(alpha: float, alpha_end: float, decay_steps: int) -> Schedule:
    """f(s) = 1: alpha at every step; alpha_end is never reached."""
    return lambda step: alpha


def polynomial(alpha: float, alpha_end: float, decay_steps: int, *, power: float = 2.0) -> Schedule:
    """f(s) = (1 - s / decay_steps)^power.

    Args:
        alpha: Value at step 0.
        alpha_end: Value at step ``decay_steps`` and after it.
        decay_steps: Optimizer steps that the decay takes.
        power: Exponent, > 0 and at most 1e6; 1 is ``linear``.

    Returns:
        The schedule.

    >>> [polynomial(4.0, 0.0, 4, power=2)(t) for t in range(5)]
    [4.0, 2.25, 1.0, 0.25, 0.0]
    """
    _require(is_number(power) and power > 0, f"`power` must be a number > 0; got {shown(power)}")
    _require(power <= MAX_NUMBER, f"`power` must be at most 1e6; got {shown(power)}")
    return lambda step: (
        alpha_end + (alpha - alpha_end) * (1.0 - _progress(step, decay_steps)) ** power
    )


def linear(alpha: float, alpha_end: float, decay_steps: int) -> Schedule:
    """f(s) = 1 - s / decay_steps.

    >>> [linear(5.0, 1.0, 4)(t) for t in range(5)]
    [5.0, 4.0, 3.0, 2.0, 1.0]
    """
    return polynomial(alpha, alpha_end, decay_steps, power=1.0)


def cosine(alpha: float, alpha_end: float, decay_steps: int) -> Schedule:
    """f(s) = (1 + cos(pi s / decay_steps)) / 2 (arXiv 1608.03983, without restarts).

    >>> [round(cosine(4.0, 0.0, 4)(t), 3) for t in range(5)]
    [4.0, 3.414, 2.0, 0.586, 0.0]
    """
    return lambda step: (
        alpha_end
        + (alpha - alpha_end) * 0.5 * (1.0 + math.cos(math.pi * _progress(step, decay_steps)))
    )


def exponential(
    alpha: float,
    alpha_end: float,
    decay_steps: int,
    *,
    decay_rate: float = 0.01,
    transition_steps: float | None = None,
) -> Schedule:
    """f(s) = decay_rate^(s / transition_steps).

    Args:
        alpha: Value at step 0.
        alpha_end: Value approached, never reached.
        decay_steps: Optimizer steps after warm-up.
        decay_rate: What is left of ``alpha - alpha_end`` after ``transition_steps``, in (0, 1].
        transition_steps: Steps (>= 1), or a fraction of ``decay_steps`` in (0, 1); all of them when
            unset.

    Returns:
        The schedule.

    >>> [exponential(8.0, 0.0, 4, decay_rate=0.5, transition_steps=1)(t) for t in range(4)]
    [8.0, 4.0, 2.0, 1.0]
    """
    _require(
        is_number(decay_rate) and 0 < decay_rate <= 1,
        f"`decay_rate` must be a number in (0, 1]; got {shown(decay_rate)}",
    )
    length = decay_steps if transition_steps is None else transition_steps
    span = _span("transition_steps", length, decay_steps)
    return lambda step: alpha_end + (alpha - alpha_end) * decay_rate ** (step / span)


def step(
    alpha: float,
    alpha_end: float,
    decay_steps: int,
    *,
    step_size: float = 0.25,
    decay_rate: float = 0.5,
) -> Schedule:
    """f(s) = decay_rate^floor(s / step_size): ``exponential`` in plateaus.

    Args:
        alpha: Value of the first plateau.
        alpha_end: Value approached, never reached.
        decay_steps: Optimizer steps after warm-up.
        step_size: Steps (>= 1), or a fraction of ``decay_steps`` in (0, 1).
        decay_rate: Factor from one plateau to the next, in (0, 1].

    Returns:
        The schedule.

    >>> [step(8.0, 0.0, 8, step_size=2)(t) for t in range(6)]
    [8.0, 8.0, 4.0, 4.0, 2.0, 2.0]
    """
    span = _span("step_size", step_size, decay_steps)
    decay = exponential(alpha, alpha_end, decay_steps, decay_rate=decay_rate, transition_steps=1)
    return lambda step: decay(step // span)


def with_warmup(schedule: Schedule, alpha: float, warmup_steps: int) -> Schedule:
    """Ramp from 0 to alpha over the first steps, then start the schedule.

    ``alpha * t / warmup_steps`` for ``t < warmup_steps``, ``schedule(t - warmup_steps)`` after:
    noise is 0 at step 0, and alpha at the end of the ramp, like the learning rate of transformers'
    warm-ups.

    Args:
        schedule: What follows the ramp; its step 0 is step ``warmup_steps`` of training.
        alpha: Value the ramp ends at.
        warmup_steps: In optimizer steps; 0 leaves the schedule as it is.

    Returns:
        The schedule with its warm-up.
    """
    if warmup_steps == 0:
        return schedule
    return lambda step: (
        alpha * step / warmup_steps if step < warmup_steps else schedule(step - warmup_steps)
    )


def _progress(step: int, decay_steps: int) -> float:
    """How much of the decay is over, ``s / decay_steps``; 1 from its end on."""
    return min(step / max(decay_steps, 1), 1.0)


def _span(name: str, value: float, decay_steps: int) -> int:
    """A number of steps (>= 1), or a fraction of training in (0, 1), as a number of steps."""
    _require(
        is_number(value) and (0 < value < 1 or (value >= 1 and value % 1 == 0)),
        f"`{name}` must be a number of steps (int >= 1) or a fraction of training in (0, 1); "
        f"got {shown(value)}",
    )
    _require(value <= MAX_STEPS, f"`{name}` must be at most 2**63 steps; got {shown(value)}")
    return int(value) if value >= 1 else max(1, math.ceil(value * decay_steps))


def is_number(value: object) -> bool:
    """Whether a value is an int, of whatever size, or a finite float; a bool is none."""
    if isinstance(value, int):
        return not isinstance(value, bool)
    return isinstance(value, float) and math.isfinite(value)


def shown(value: object) -> str:
    """A value as messages show it: its ``repr``, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no int of more than 4300 digits
        return "a value of too many digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
