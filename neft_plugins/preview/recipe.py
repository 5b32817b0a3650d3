"""A YAML of TRL or Axolotl: its noise, checked as training checks it, and its model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from neft_plugins.checks import refuse_keys_inside
from neft_plugins.config import NEFTConfig
from neft_plugins.keys import ALPHA_KEY, read_yaml
from neft_plugins.sparsity.config import SparsityConfig

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

_CASTING_ATTENTION = ("flash_attention", "flex_attention", "xformers_attention", "sage_attention")


class Recipe(NamedTuple):
    """What a YAML says.

    Attributes:
        host: Whose it is.
        keys: Its keys.
        config: The noise; None where no alpha is set.
        model: A Hub id or a folder.
        dtype: In which training has the embedding; None for that of the checkpoint.
        revision: Of the model's repository.
        trust: Whether code beside the weights may be run.
        num_processes: Data-parallel processes, where it says.
    """

    host: Literal["trl", "axolotl"]
    keys: dict[str, Any]
    config: NEFTConfig | None
    model: str
    dtype: torch.dtype | None
    revision: str | None
    trust: bool
    num_processes: int | None


def read_recipe(path: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a YAML, and refuse what training would refuse of its noise.

    Args:
        path: The YAML.
        changes: Keys that are to be other than there.

    Returns:
        What it says. Doubts about the noise are given as ``NEFTWarning``.

    Raises:
        ValueError: For a wrong key or value of the noise, or no model.
        OSError: If the file cannot be read.
        yaml.YAMLError: If it is not YAML.
    """
    keys = read_yaml(path) | dict(changes or {})
    SparsityConfig.from_keys(keys)  # no noise, but refused as training refuses it
    if keys.get("base_model"):
        return _read_axolotl(keys)
    if keys.get("model_name_or_path"):
        return _read_trl(keys)
    raise ValueError(
        f"{path} names no model: set `model_name_or_path` (TRL) or `base_model` (Axolotl), a Hub "
        "id or a folder."
    )


def _read_trl(keys: dict[str, Any]) -> Recipe:
    dtype = str(keys.get("dtype") or keys.get("torch_dtype") or "float32")
    processes = keys.get("num_processes")
    return Recipe(
        "trl",
        keys,
        NEFTConfig.from_keys(keys),
        str(keys["model_name_or_path"]),
        _DTYPES.get(dtype),
        keys.get("model_revision") if keys.get("model_revision") != "main" else None,
        keys.get("trust_remote_code") is True,
        processes if isinstance(processes, int) else None,
    )


def _read_axolotl(keys: dict[str, Any]) -> Recipe:
    noise = {key: value for key, value in keys.items() if key.lower().startswith("neft")}
    if noise.get(ALPHA_KEY) is None:
        noise[ALPHA_KEY] = keys.get("noisy_embedding_alpha")  # Axolotl's old name
    config = NEFTConfig.from_keys(noise)
    _refuse_as_axolotl(keys, config)
    return Recipe(
        "axolotl",
        keys,
        config,
        str(keys["base_model"]),
        _axolotl_dtype(keys),
        keys.get("revision_of_model"),
        keys.get("trust_remote_code") is True,
        None,
    )


def _refuse_as_axolotl(keys: Mapping[str, Any], config: NEFTConfig | None) -> None:
    """What NEFTPlugin refuses beside wrong values; its modes only where Axolotl is installed."""
    refuse_keys_inside(keys)
    try:
        from neft_plugins.axolotl.modes import check_mode
    except ModuleNotFoundError as error:
        if error.name != "axolotl":
            raise
        return
    if config is not None and config.alpha > 0:
        check_mode(config, keys)


def _axolotl_dtype(keys: Mapping[str, Any]) -> torch.dtype:
    """In which Axolotl has the embedding: float32, unless an adapter or the attention forbids."""
    attention = keys.get("attn_implementation") or ("eager" if keys.get("eager_attention") else "")
    casts = attention not in ("", "eager", "sdpa") or any(
        keys.get(key)
        for key in ("adapter", "cut_cross_entropy", "fsdp", "fsdp_config", *_CASTING_ATTENTION)
    )
    if not casts:
        return torch.float32
    if keys.get("bf16") or keys.get("bfloat16"):  # `auto` is bfloat16 where a GPU has it
        return torch.bfloat16
    halves = keys.get("fp16") or keys.get("float16") or keys.get("load_in_8bit")
    return torch.float16 if halves else torch.float32
