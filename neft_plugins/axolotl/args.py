"""NEFTArgs: the keys in an Axolotl YAML, checked before a model is loaded."""

from typing import Any

from pydantic import BaseModel, Field, model_validator

from neft_plugins.axolotl.modes import check_mode
from neft_plugins.config import ALPHA_KEY, NEFTConfig

NUMBERS = (ALPHA_KEY, "neft_alpha_end", "neft_warmup_steps")


def _key(description: str) -> Any:
    return Field(default=None, json_schema_extra={"description": description})


class NEFTArgs(BaseModel):
    """The ``neft_*`` keys beside Axolotl's own ``neftune_noise_alpha``; unset is the default."""

    neft_distribution: str | None = _key(
        "Noise distribution, of variance 1/3 whichever it is: uniform (default), gaussian, "
        "rademacher, or a registered name."
    )
    neft_schedule: str | None = _key(
        "How alpha moves over optimizer steps: constant (default), linear, cosine, polynomial, "
        "exponential, step, or a registered name."
    )
    neft_schedule_args: dict[str, Any] | None = _key(
        "Arguments of the schedule, such as {power: 2}."
    )
    neft_alpha_end: float | None = _key("Where the schedule ends, >= 0. Default 0.")
    neft_warmup_steps: int | float | None = _key(
        "Steps over which alpha rises from 0; below 1, a share of training. Default 0."
    )
    neft_tokens: str | None = _key(
        "Tokens that get noise: all (default; never padding), response (those trained on), prompt, "
        "or a registered name."
    )
    neft_length: str | None = _key(
        "L in alpha / sqrt(L * d): sequence (default; real tokens of the document), row (width of "
        "the tensor, as in transformers), noised (tokens of the document that get noise)."
    )
    neft_scale: str | None = _key(
        "absolute (default), or relative: alpha is the noise-to-signal ratio, 0.02 to 0.2."
    )
    neft_seed: int | None = _key("Seed of the noise. Default: `seed`.")

    @model_validator(mode="before")
    @classmethod
    def check_neft_keys(cls, data: Any) -> Any:
        """Refuse wrong values, unknown ``neft*`` keys, and what cannot have noise."""
        keys = {**data}
        if keys.get(ALPHA_KEY) is None:
            keys[ALPHA_KEY] = keys.get("noisy_embedding_alpha")  # Axolotl's own deprecated name
        config = NEFTConfig.from_keys({**keys, **_numbers(keys)})
        if config is not None:
            check_mode(config, keys)
        return data


def _numbers(keys: dict[str, Any]) -> dict[str, float]:
    """What YAML reads as text although it is a number, such as 1e1; Axolotl takes these."""
    numbers = {}
    for key in NUMBERS:
        if isinstance(keys.get(key), str):
            try:
                numbers[key] = float(keys[key])
            except ValueError:
                continue
    return numbers
