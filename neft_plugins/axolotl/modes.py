"""Which of Axolotl's modes cannot have which noise, and why."""

from collections.abc import Mapping
from typing import Any

from neft_plugins.config import NEFTConfig, NEFTConfigError

LABEL_RULES = ("response", "prompt")


def check_mode(config: NEFTConfig, keys: Mapping[str, Any]) -> None:
    """Refuse a run that could not have the noise that was asked for.

    Args:
        config: What noise.
        keys: Axolotl's YAML.

    Raises:
        NEFTConfigError: With the reason and the way out.
    """
    if config.tokens in LABEL_RULES:
        reason = _keeps_labels(keys)
        if reason:
            raise NEFTConfigError(
                f"`neft_tokens: {config.tokens}` needs labels, but with {reason} Axolotl does not "
                "give them to the model. Use `neft_tokens: all`."
            )
    if config.tokens == "prompt":
        for key in ("train_on_inputs", "pretraining_dataset"):
            if keys.get(key):
                raise NEFTConfigError(
                    f"`neft_tokens: prompt` chooses no token with `{key}`, which trains on every "
                    "token, so there would be no noise. Use `neft_tokens: all`."
                )


def _keeps_labels(keys: Mapping[str, Any]) -> str | None:
    """What in the YAML keeps the labels from the model, if anything."""
    for key in ("rl", "reward_model", "kd_trainer", "use_eaft"):
        if keys.get(key):
            return f"`{key}: {str(keys[key]).lower()}`"
    return None
