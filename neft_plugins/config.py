"""NEFTConfig: every option, checked once."""

import difflib
import inspect
import math
import warnings
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from neft_plugins import registry
from neft_plugins.noise import schedules

ALPHA_KEY = "neftune_noise_alpha"
PREFIX = "neft_"


class NEFTWarning(UserWarning):
    """Something that is allowed but probably not what was meant."""


class NEFTConfigError(ValueError):
    """A wrong value of an option; the message names the option as the user wrote it."""


@dataclass(frozen=True)
class NEFTConfig:
    """How noise is added to the input embeddings.

    ``E' = E + m * g * alpha(t) / sqrt(L * D) * eps`` for each token, with eps of variance 1/3
    (NEFTune, arXiv 2310.05914, generalised). In YAML and ``NEFTSFTConfig``, ``alpha`` is
    ``neftune_noise_alpha`` and every other option has the prefix ``neft_``.

    Args:
        alpha: Strength at the start, dimensionless, > 0; 5 to 15 in the paper. With ``scale:
            relative``, the noise-to-signal ratio; 0.02 to 0.2 is typical.
        distribution: eps: 'uniform', 'gaussian', 'rademacher', or a registered name.
        schedule: alpha(t): 'constant', 'linear', 'cosine', 'polynomial', 'exponential', 'step', or
            a registered name.
        schedule_args: Keyword arguments of the schedule, such as ``{"power": 2}``.
        alpha_end: Where the schedule ends, >= 0.
        warmup_steps: Steps over which alpha rises from 0; below 1, a share of training.
        tokens: m: 'all', 'response', 'prompt', or a registered name.
        length: L: 'sequence' (the default: real tokens of the document), 'row' (width of the
            tensor, as in transformers), 'noised' (tokens of the document that get noise). Not
            used, and None, with ``scale: relative``.
        scale: 'absolute', or 'relative' to each token's embedding RMS.
        seed: Seed of the noise; unset, the trainer's seed, or ``torch.initial_seed()`` in a plain
            loop.

    Raises:
        NEFTConfigError: If a value is not allowed; the message says what is.
    """

    alpha: float
    distribution: str = "uniform"
    schedule: str = "constant"
    schedule_args: dict[str, Any] = field(default_factory=dict)
    alpha_end: float = 0.0
    warmup_steps: float = 0
    tokens: str = "all"
    length: str | None = None
    scale: str = "absolute"
    seed: int | None = None

    def __post_init__(self) -> None:
        if not schedules.is_number(self.alpha) or self.alpha <= 0:
            raise _error(
                "`{alpha}` must be a number > 0 (5 to 15 is typical); got {got}. "
                "Leave it out for no noise.",
                got=repr(self.alpha),
            )
        _check_choice("distribution", self.distribution, registry.variants("distribution"))
        _check_choice("schedule", self.schedule, registry.variants("schedule"))
        _check_choice("tokens", self.tokens, registry.variants("tokens"))
        _check_choice("scale", self.scale, ("absolute", "relative"))
        self._check_length()
        self._check_numbers()
        self._check_schedule()

    def _check_length(self) -> None:
        if self.scale == "absolute":
            length = "sequence" if self.length is None else self.length
            _check_choice("length", length, ("sequence", "row", "noised"))
            object.__setattr__(self, "length", length)
        elif self.length is not None:
            raise _error(
                "`{length}` is not used with `{scale}: relative`, which scales by each embedding's "
                "RMS; got {got}. Remove `{length}`, or set `{scale}: absolute`.",
                got=repr(self.length),
            )

    def _check_numbers(self) -> None:
        if not schedules.is_number(self.alpha_end) or self.alpha_end < 0:
            raise _error(
                "`{alpha_end}` must be a number >= 0; got {got}.", got=repr(self.alpha_end)
            )
        warmup = self.warmup_steps
        if (
            not schedules.is_number(warmup)
            or warmup < 0
            or (warmup >= 1 and not float(warmup).is_integer())
        ):
            raise _error(
                "`{warmup_steps}` must be a number of steps (int >= 0) or a share of training in "
                "[0, 1); got {got}.",
                got=repr(warmup),
            )
        if self.seed is not None and (
            isinstance(self.seed, bool) or not isinstance(self.seed, int)
        ):
            raise _error("`{seed}` must be an int or unset; got {got}.", got=repr(self.seed))

    def _check_schedule(self) -> None:
        if not isinstance(self.schedule_args, Mapping):
            raise _error(
                "`{schedule_args}` must be a mapping of the schedule's arguments; got {got}.",
                got=repr(self.schedule_args),
            )
        object.__setattr__(self, "schedule_args", dict(self.schedule_args))
        factory = registry.load("schedule", self.schedule)
        allowed = list(inspect.signature(factory).parameters)[3:]
        for name in self.schedule_args:
            if name not in allowed:
                raise _error(
                    "`{schedule_args}` of {schedule_name} may be {allowed}; got {got}.{hint}",
                    schedule_name=repr(self.schedule),
                    allowed=_quoted(allowed) or "nothing: it takes no arguments",
                    got=repr(name),
                    hint=_closest(name, allowed),
                )
        try:
            factory(self.alpha, self.alpha_end, 100, **self.schedule_args)
        except (TypeError, ValueError) as error:
            raise _error(
                "`{schedule_args}` of {schedule_name}: {problem}.",
                schedule_name=repr(self.schedule),
                problem=str(error).rstrip("."),
            ) from error
        if self.schedule == "constant" and self.alpha_end != 0:
            message = (
                "`{alpha_end}` is {got}, but `{schedule}: constant` stays at `{alpha}` and never "
                "reaches it. Set `{schedule}` to one that decays, such as linear or cosine."
            )
            message = message.format(**_spelling.get(), got=repr(self.alpha_end))
            warnings.warn(message, NEFTWarning, stacklevel=4)

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any]) -> "NEFTConfig | None":
        """Build the config from ``neftune_noise_alpha`` and ``neft_*`` keys, as YAML has them.

        Args:
            keys: Any mapping; keys that do not begin with ``neft`` are not looked at.
                None, and an option's default, are the same as leaving it out.

        Returns:
            The config, or None where there is no alpha and so no noise.

        Raises:
            NEFTConfigError: For a wrong value, an unknown ``neft*`` key, or a key without an
            alpha.
        """
        given = {
            key: value for key, value in keys.items() if key in KEY_OPTIONS and value is not None
        }
        for key in keys:
            if key.lower().startswith("neft") and key not in KEY_OPTIONS:
                known = list(KEY_OPTIONS)
                raise _error(
                    "Unknown key `{key}`; the keys are {known}.{hint}",
                    key=key,
                    known=", ".join(known),
                    hint=_closest(key.lower(), known),
                )
        if ALPHA_KEY not in given:
            for key, value in given.items():
                if value != _DEFAULTS[KEY_OPTIONS[key]]:
                    raise _error(
                        "`{key}` is set but `{alpha_key}` is not, so there would be no noise. "
                        "Set `{alpha_key}` (5 to 15 is typical).",
                        key=key,
                        alpha_key=ALPHA_KEY,
                    )
            return None
        token = _spelling.set(KEY_NAMES)
        try:
            return cls(**{KEY_OPTIONS[key]: value for key, value in given.items()})
        finally:
            _spelling.reset(token)

    def build_schedule(self, total_steps: int | None) -> schedules.Schedule:
        """alpha(t) of this config, with its warm-up.

        Args:
            total_steps: Optimizer steps of the whole run; may be None where nothing depends on it.

        Returns:
            ``step -> alpha``, a pure function.

        Raises:
            NEFTConfigError: If ``total_steps`` is needed and None.
        """
        share = 0 < self.warmup_steps < 1
        if total_steps is None and (self.schedule != "constant" or share):
            raise _error(
                "`{schedule}: {name}` with `{warmup_steps}: {warmup}` depends on how long "
                "training is. Pass `total_steps`, the number of optimizer steps.",
                name=self.schedule,
                warmup=str(self.warmup_steps),
            )
        total = total_steps or 0
        warmup = math.ceil(total * self.warmup_steps) if share else int(self.warmup_steps)
        decay = registry.load("schedule", self.schedule)(
            self.alpha, self.alpha_end, max(total - warmup, 1), **self.schedule_args
        )
        return schedules.with_warmup(decay, self.alpha, warmup)

    def describe(self, total_steps: int | None = None) -> str:
        """What will happen, in one line.

        >>> NEFTConfig(alpha=5, schedule="cosine", tokens="response").describe(120)
        'alpha 5 -> 0 cosine over 120 steps, uniform, response tokens, L = sequence'
        """
        moving = self.schedule != "constant"
        parts = [
            f"alpha {self.alpha:g}"
            + (f" -> {self.alpha_end:g}" if moving else "")
            + f" {self.schedule}"
            + (f" over {total_steps} steps" if total_steps else ""),
            self.distribution,
            f"{self.tokens} tokens",
            f"L = {self.length}" if self.length else "relative to each embedding's RMS",
        ]
        if self.warmup_steps:
            unit = "of training" if self.warmup_steps < 1 else "steps"
            parts.insert(1, f"warm-up {self.warmup_steps:g} {unit}")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Every option by its bare name, for JSON."""
        return asdict(self)


KEY_OPTIONS: dict[str, str] = {
    ALPHA_KEY if option.name == "alpha" else PREFIX + option.name: option.name
    for option in fields(NEFTConfig)
}
"""YAML key -> option."""
KEY_NAMES: dict[str, str] = {option: key for key, option in KEY_OPTIONS.items()}
"""Knob -> YAML key."""
BARE_NAMES: dict[str, str] = {option: option for option in KEY_NAMES}
_DEFAULTS: dict[str, Any] = {
    option.name: {} if option.name == "schedule_args" else option.default
    for option in fields(NEFTConfig)
}


# How messages spell options: bare in Python, with their prefix while `from_keys` reads YAML keys.
_spelling: ContextVar[Mapping[str, str]] = ContextVar("spelling", default=BARE_NAMES)


def _error(template: str, **values: str) -> NEFTConfigError:
    return NEFTConfigError(template.format(**_spelling.get(), **values))


def _check_choice(option: str, value: Any, allowed: Iterable[str]) -> None:
    allowed = sorted(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise _error(
            f"`{{{option}}}` must be one of {{allowed}}; got {{got}}.{{hint}}",
            allowed=_quoted(allowed),
            got=repr(value),
            hint=_closest(value, allowed),
        )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _closest(value: Any, allowed: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
