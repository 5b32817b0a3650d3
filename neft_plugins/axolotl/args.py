"""NEFTArgs: the keys in an Axolotl YAML, checked before a model is loaded."""

from typing import Any

from pydantic import BaseModel, Field, model_validator

from neft_plugins.axolotl.modes import check_mode
from neft_plugins.config import ALPHA_KEY, OPTIONS, NEFTConfig, default_text

NUMBERS = (ALPHA_KEY, "neft_alpha_end", "neft_warmup_steps")


def _key(option: str) -> Any:
    """A field with the text of an option of ``NEFTConfig``, whose default is that of unset."""
    text = f"{OPTIONS[option].metadata['help']} Default: {default_text(option)}."
    return Field(default=None, json_schema_extra={"description": text})


class NEFTArgs(BaseModel):
    """The ``neft_*`` keys beside Axolotl's own ``neftune_noise_alpha``; unset is the default."""

    neft_distribution: str | None = _key("distribution")
    neft_schedule: str | None = _key("schedule")
    neft_schedule_args: dict[str, Any] | None = _key("schedule_args")
    neft_alpha_end: float | None = _key("alpha_end")
    neft_warmup_steps: int | float | None = _key("warmup_steps")
    neft_tokens: str | None = _key("tokens")
    neft_length: str | None = _key("length")
    neft_scale: str | None = _key("scale")
    neft_seed: int | None = _key("seed")

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
