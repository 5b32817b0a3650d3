"""NEFTArgs: the keys in an Axolotl YAML, checked before a model is loaded."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field, model_validator

from neft_plugins.axolotl.modes import check_mode, check_sparse_mode
from neft_plugins.config import OPTIONS, NEFTConfig, default_text
from neft_plugins.keys import ALPHA_KEY
from neft_plugins.sparsity.config import ARGUMENTS, SPARSITY_ARGS_HELP, SparsityConfig

OLD_ALPHA_KEY = "noisy_embedding_alpha"
"""Axolotl's own deprecated name of ``neftune_noise_alpha``."""


def _key(option: str) -> Any:
    """A field with the text of an option of ``NEFTConfig``, whose default is that of unset."""
    return _described(f"{OPTIONS[option].metadata['help']} Default: {default_text(option)}.")


def _described(text: str) -> Any:
    return Field(default=None, json_schema_extra={"description": text})


class NEFTArgs(BaseModel):
    """The ``neft_*`` keys beside Axolotl's own ``neftune_noise_alpha``; unset is the default."""

    neft_distribution: str | None = _key("distribution")
    neft_distribution_args: dict[str, Any] | None = _key("distribution_args")
    neft_schedule: str | None = _key("schedule")
    neft_schedule_args: dict[str, Any] | None = _key("schedule_args")
    neft_alpha_end: float | None = _key("alpha_end")
    neft_warmup_steps: int | float | None = _key("warmup_steps")
    neft_tokens: str | list[str] | None = _key("tokens")
    neft_pairs: str | None = _key("pairs")
    neft_length: str | None = _key("length")
    neft_scale: str | None = _key("scale")
    neft_seed: int | None = _key("seed")
    neft_sparsity: float | str | None = _described(
        f"{ARGUMENTS['sparsity'].metadata['help']} Default: off."
    )
    neft_sparsity_args: dict[str, Any] | None = _described(SPARSITY_ARGS_HELP)

    @model_validator(mode="before")
    @classmethod
    def check_neft_keys(cls, data: Any) -> Any:
        """Refuse wrong values, unknown ``neft*`` keys, and what cannot have noise."""
        config = NEFTConfig.from_keys(noise_keys(data))
        check_sparse_mode(SparsityConfig.from_keys(data), data)
        if config is None:
            return data
        if config.alpha > 0:
            check_mode(config, data)
            return data
        # Axolotl refuses an alpha of 0 under its own name; under its old one it keeps it.
        return {**data, ALPHA_KEY: None, OLD_ALPHA_KEY: 0.0}


def noise_keys(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the noise in an Axolotl YAML, before it is validated or after.

    Args:
        cfg: The YAML. Axolotl's old name of ``neftune_noise_alpha`` counts too.

    Returns:
        What ``NEFTConfig.from_keys`` takes.
    """
    keys = {key: value for key, value in cfg.items() if str(key).lower().startswith("neft")}
    if keys.get(ALPHA_KEY) is None:
        keys[ALPHA_KEY] = cfg.get(OLD_ALPHA_KEY)
    return keys
