"""NEFTConfig: every option, its text, its check."""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import Field, InitVar, asdict, dataclass, field, fields
from typing import Any

from neft_plugins import checks, registry
from neft_plugins.checks import NEFTConfigError, wrong
from neft_plugins.keys import (
    ALPHA_KEY,
    SPARSITY_KEYS,
    is_none_in_text,
    key_name,
    number_in_text,
    plain_number,
)
from neft_plugins.messages import Message, closest, message
from neft_plugins.noise import schedules


class NEFTWarning(UserWarning):
    """Something that is allowed but probably not what was meant."""


@dataclass(frozen=True)
class NEFTConfig:
    """How noise is added to the input embeddings.

    ``E' = E + m * g * alpha(t) / sqrt(L * d) * eps`` for each token, with eps of variance 1/3
    (NEFTune, arXiv 2310.05914, generalised). In YAML and ``NEFTSFTConfig``, ``alpha`` is
    ``neftune_noise_alpha`` and every other option has the prefix ``neft_``.

    Args:
        alpha: Strength of the noise.
        distribution: Distribution of the noise.
        distribution_args: Arguments of the distribution.
        schedule: How alpha changes over training.
        schedule_args: Arguments of the schedule.
        alpha_end: Alpha at the end of the schedule.
        warmup_steps: Steps over which alpha rises from 0.
        tokens: Tokens that get noise.
        pairs: Each row twice in a batch.
        length: Length that scales the noise.
        scale: What alpha means.
        seed: Seed of the noise.
        warn: Whether a value that is allowed but hardly meant gives a ``NEFTWarning``.

    Alpha 0 is no noise, for a baseline, whatever the other options are. The values of each option
    are in the ``help`` of its field's metadata. ``length`` becomes None with ``scale: relative``; a
    plain loop's seed is ``torch.initial_seed()`` where none is given.

    Raises:
        NEFTConfigError: If a value is not allowed; the message says what is.
    """

    alpha: float = field(
        metadata={
            "help": "Strength of the noise: a number >= 0; 5 to 15 is typical. With relative "
            "scale, the noise-to-signal ratio; 0.05 to 0.5 is typical. 0, or unset: no noise.",
            "default": "off",
        }
    )
    distribution: str = field(
        default="uniform",
        metadata={
            "help": "Distribution of the noise, of variance 1/3 whichever it is: uniform, "
            "gaussian, rademacher, sparse, or a registered name."
        },
    )
    distribution_args: dict[str, Any] = field(
        default_factory=dict,
        kw_only=True,
        metadata={
            "help": 'Arguments of the distribution: a mapping, such as {"p": 0.1} for sparse.',
            "default": "{}",
        },
    )
    schedule: str = field(
        default="constant",
        metadata={
            "help": "How alpha changes over training: constant, linear, cosine, polynomial, "
            "exponential, step, sigmoid, or a registered name."
        },
    )
    schedule_args: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": 'Arguments of the schedule: a mapping, such as {"power": 2} for polynomial.',
            "default": "{}",
        },
    )
    alpha_end: float = field(
        default=0.0, metadata={"help": "Alpha at the end of the schedule: a number >= 0."}
    )
    warmup_steps: float = field(
        default=0,
        metadata={
            "help": "Steps over which alpha rises from 0: an int >= 0, or a fraction of training "
            "in [0, 1)."
        },
    )
    tokens: str | list[str] = field(
        default="all",
        metadata={
            "help": "Tokens that get noise: all (never padding), response (those trained on, "
            "labels != -100), prompt (the others), no_special (none of the tokenizer's special and "
            "added tokens), or a registered name. Of several, [response, no_special], all must "
            "choose a token."
        },
    )
    pairs: str | None = field(
        default=None,
        kw_only=True,
        metadata={
            "help": "Each row twice in a batch: symmetric (the noise added, and the same noise "
            "subtracted), independent (two draws). It takes twice the compute and memory.",
            "default": "rows once",
        },
    )
    length: str | None = field(
        default=None,
        metadata={
            "help": "Length that scales the noise: sequence (real tokens of the document), row "
            "(width of the tensor, padding noised too, as in transformers), noised (tokens of the "
            "document that get noise).",
            "default": "sequence",
        },
    )
    scale: str = field(
        default="absolute",
        metadata={
            "help": "What alpha means: absolute (as in the paper), relative (the noise-to-signal "
            "ratio of every token)."
        },
    )
    seed: int | None = field(
        default=None,
        metadata={"help": "Seed of the noise: an int.", "default": "the trainer's seed"},
    )
    warn: InitVar[bool] = field(default=True, kw_only=True)

    def __post_init__(self, warn: bool) -> None:
        for option in ("alpha", "alpha_end", "warmup_steps", "seed"):
            object.__setattr__(self, option, plain_number(getattr(self, option)))
        checks.check_alpha("alpha", self.alpha)
        checks.check_alpha("alpha_end", self.alpha_end)
        checks.check_choice("distribution", self.distribution, registry.variants("distribution"))
        checks.check_choice("schedule", self.schedule, registry.variants("schedule"))
        checks.check_choice("scale", self.scale, ("absolute", "relative"))
        if self.pairs is not None:
            checks.check_choice("pairs", self.pairs, ("symmetric", "independent"))
        checks.check_warmup(self.warmup_steps)
        checks.check_seed(self.seed)
        resolved = {
            "tokens": checks.check_tokens(self.tokens),
            "length": checks.check_length(self.length, self.scale),
            "schedule_args": checks.check_schedule_args(
                self.schedule, self.schedule_args, self.alpha, self.alpha_end
            ),
            "distribution_args": checks.check_distribution_args(
                self.distribution, self.distribution_args
            ),
        }
        for option, value in resolved.items():
            object.__setattr__(self, option, value)
        if warn:
            for doubt in self._doubts():
                warnings.warn(doubt, NEFTWarning, stacklevel=3)

    def _doubts(self) -> Iterator[Message]:
        """What is allowed but hardly meant."""
        if self.alpha == 0:
            return
        if self.schedule == "constant" and self.alpha_end != 0:
            yield message(
                "`{alpha_end}` is {got}, but `{schedule}: constant` stays at `{alpha}` and never "
                "reaches it. Set `{schedule}` to one that decays, such as linear or cosine.",
                got=repr(self.alpha_end),
            )
        rises = self.schedule != "constant" and self.alpha_end > self.alpha
        strongest = "alpha_end" if rises else "alpha"
        if self.scale == "relative" and getattr(self, strongest) > 1:
            yield message(
                f"`{{{strongest}}}: {{got}}` with `{{scale}}: relative` is noise {{got}} times as "
                f"strong as the embeddings; 0.05 to 0.5 is typical. Lower `{{{strongest}}}`, or "
                "set `{scale}: absolute`, where 5 to 15 is typical.",
                got=f"{getattr(self, strongest):g}",
            )

    @classmethod
    def from_keys(cls, keys: Mapping[str, Any], *, warn: bool = True) -> "NEFTConfig | None":
        """Build the config from ``neftune_noise_alpha`` and ``neft_*`` keys, as YAML has them.

        Args:
            keys: Any mapping; keys that do not begin with ``neft``, and those of sparsity, are not
                looked at. None (on a command line, the text ``None``) and an option's default are
                the same as leaving it out. What YAML reads as text although it is a number, such as
                1e-2, is one.
            warn: As in ``NEFTConfig``; False where the same keys are read again.

        Returns:
            The config, or None where alpha is unset. With alpha 0 the other keys are checked.

        Raises:
            NEFTConfigError: For a wrong value, an unknown ``neft*`` key, or a key without an
                alpha.
        """
        known = (*KEY_OPTIONS, *SPARSITY_KEYS)
        for key in keys:
            if key.lower().startswith("neft") and key not in known:
                if isinstance(keys[key], Mapping):
                    raise NEFTConfigError(
                        f"`{key}` is no key of the noise, and the keys in it would not be read. "
                        "Write them at the top level, such as `neft_schedule: cosine`. A holder of "
                        "YAML anchors needs a name that begins with `x-`."
                    )
                raise NEFTConfigError(
                    f"Unknown key `{key}`; the keys are {', '.join(known)}."
                    f"{closest(key.lower(), known)}"
                )
        given = {
            option: number_in_text(keys[key]) if option in _NUMBERS else keys[key]
            for key, option in KEY_OPTIONS.items()
            if keys.get(key) is not None and not is_none_in_text(keys[key])
        }
        if "alpha" not in given:
            for option, value in given.items():
                if value != _DEFAULTS[option]:
                    raise NEFTConfigError(
                        f"`{KEY_NAMES[option]}` is set but `{ALPHA_KEY}` is not, so there would be "
                        f"no noise. Set `{ALPHA_KEY}` (5 to 15 is typical; 0 is no noise, for a "
                        "baseline).",
                        option,
                    )
            return None
        try:
            config = cls(**given, warn=False)
        except NEFTConfigError as error:
            error.args = (error.args[0].with_keys,)
            raise
        if warn:
            for doubt in config._doubts():
                warnings.warn(doubt.with_keys, NEFTWarning, stacklevel=2)
        return config

    def build_schedule(self, total_steps: int | None) -> schedules.Schedule:
        """alpha(t) of this config, with its warm-up.

        Args:
            total_steps: Optimizer steps of the whole run; may be None where nothing depends on it.

        Returns:
            ``step -> alpha``, a pure function; 0 at every step if alpha is 0. A warm-up that is not
            over when training is gives a ``NEFTWarning``.

        Raises:
            NEFTConfigError: If ``total_steps`` is needed and None.
        """
        fraction = 0 < self.warmup_steps < 1
        if total_steps is None and (self.schedule != "constant" or fraction):
            raise wrong(
                "`{schedule}: {name}` with `{warmup_steps}: {warmup}` depends on how long "
                "training is. Pass `total_steps`, the number of optimizer steps.",
                "warmup_steps" if fraction else "schedule",
                name=self.schedule,
                warmup=str(self.warmup_steps),
            )
        if self.alpha == 0:
            return lambda step: 0.0
        total = total_steps or 0
        warmup = math.ceil(total * self.warmup_steps) if fraction else int(self.warmup_steps)
        decay = registry.load("schedule", self.schedule)(
            self.alpha, self.alpha_end, max(total - warmup, 1), **self.schedule_args
        )
        schedule = schedules.with_warmup(decay, warmup)
        if total and warmup >= total:
            warnings.warn(
                f"The warm-up ends at step {warmup} and training at {total}, so alpha is only "
                f"{schedule(total - 1):g} at the last step and never {decay(0):g}. Lower "
                "`warmup_steps`; 0.1 is a tenth of training.",
                NEFTWarning,
                stacklevel=2,
            )
        elif "transition_begin" in self.schedule_args and decay(0) == decay(total - warmup - 1):
            warnings.warn(
                f"`transition_begin` is {self.schedule_args['transition_begin']:g} and training "
                f"has {total - warmup} steps after the warm-up, so alpha stays {decay(0):g}. Lower "
                "`transition_begin`; 0.5 is half of training.",
                NEFTWarning,
                stacklevel=2,
            )
        return schedule

    def describe(self, total_steps: int | None = None) -> str:
        """What will happen, in one line.

        Examples:
            >>> NEFTConfig(alpha=5, schedule="cosine", tokens="response").describe(120)
            'alpha 5 -> 0 cosine over 120 steps, uniform, response tokens, L = sequence'
        """
        if self.alpha == 0:
            return "alpha 0, no noise"
        ends = [f"{self.alpha:g}", f"{self.alpha_end:g}"]
        if self.schedule_args.get("reverse"):
            ends.reverse()
        given = ", ".join(f"{name} = {value}" for name, value in self.distribution_args.items())
        parts = [
            "alpha "
            + " -> ".join(ends[:1] if self.schedule == "constant" else ends)
            + f" {self.schedule}"
            + (f" over {total_steps} steps" if total_steps else ""),
            self.distribution + (f" ({given})" if given else ""),
            f"{' and '.join(self.token_rules)} tokens",
            f"L = {self.length}" if self.length else "relative to each embedding's RMS",
        ]
        if self.warmup_steps:
            unit = "of training" if self.warmup_steps < 1 else "steps"
            parts.insert(1, f"warm-up {self.warmup_steps:g} {unit}")
        if self.pairs:
            parts.append(f"{self.pairs} pairs (each row twice: twice the compute and memory)")
        return ", ".join(parts)

    @property
    def token_rules(self) -> list[str]:
        """The names of the token rules, of which all must choose a token."""
        return [self.tokens] if isinstance(self.tokens, str) else self.tokens

    def to_dict(self) -> dict[str, Any]:
        """Every option by its bare name, for JSON."""
        return asdict(self)


OPTIONS: dict[str, Field[Any]] = {option.name: option for option in fields(NEFTConfig)}
"""Bare name -> the option's field, with its text and default."""
KEY_NAMES: dict[str, str] = {option: key_name(option) for option in OPTIONS}
"""Bare name -> YAML key."""
KEY_OPTIONS: dict[str, str] = {key: option for option, key in KEY_NAMES.items()}
"""YAML key -> bare name."""
_DEFAULTS: dict[str, Any] = {
    name: {} if name.endswith("_args") else option.default for name, option in OPTIONS.items()
}
_NUMBERS = ("alpha", "alpha_end", "warmup_steps", "schedule_args", "distribution_args")


def default_text(option: str) -> str:
    """An option's default, as help and tables write it."""
    return OPTIONS[option].metadata.get("default", str(OPTIONS[option].default))
