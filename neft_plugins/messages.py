"""Messages that name an option as the user wrote it, and the allowed value that is closest."""

import difflib
from collections.abc import Iterable
from typing import Any

from neft_plugins.keys import ALPHA_KEY, key_name, option_name

NO_DATASET = "No dataset: set `dataset_name` (a Hub id or a folder) or `datasets`."
"""Of ``neft sft``, and of what reads its YAML."""
NO_MODEL = "No model: set `model_name_or_path` (a Hub id or a folder)."
"""Of ``neft sft``, and of what reads its YAML."""

_SYNONYMS = {
    **dict.fromkeys(("neft_alpha", "neftune_alpha", "neft_noise", "neft_noise_alpha"), ALPHA_KEY),
    **dict.fromkeys(("neft_warmup", "neft_warmup_ratio"), "neft_warmup_steps"),
    **dict.fromkeys(("neft_end", "neft_end_alpha"), "neft_alpha_end"),
    **dict.fromkeys(("normal", "norm"), "gaussian"),
    **dict.fromkeys(("completion", "assistant", "answer", "output"), "response"),
    **dict.fromkeys(("instruction", "user", "input"), "prompt"),
    "exp": "exponential",
}
"""What other libraries call a key or a value -> what it is here."""


class Message(str):
    """A message that writes options by their bare names, and ``with_keys`` by their keys."""

    with_keys: str


class _BareNames(dict[str, str]):
    def __missing__(self, option: str) -> str:
        return option


class _Keys(dict[str, str]):
    def __missing__(self, option: str) -> str:
        return key_name(option)


def message(template: str, **values: str) -> Message:
    """A message from a template with fields.

    Args:
        template: A field that no value is given for is an option, by its bare name.
        **values: Of the other fields.

    Returns:
        The message, in both spellings.

    >>> message("`{schedule}` is {what}.", what="wrong").with_keys
    '`neft_schedule` is wrong.'
    """
    made = Message(template.format_map(_BareNames(values)))
    made.with_keys = template.format_map(_Keys(values))
    return made


def quoted(names: Iterable[str]) -> str:
    """Names in quotes, with commas."""
    return ", ".join(repr(name) for name in names)


def closest(value: Any, allowed: Iterable[str]) -> str:
    """A question after the allowed name that is probably meant; empty where there is none."""
    if not isinstance(value, str):
        return ""
    value, allowed = value.lower(), list(allowed)
    meant = [_SYNONYMS[value]] if _SYNONYMS.get(value) in allowed else []
    close = meant or difflib.get_close_matches(value, allowed, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def unknown_option(word: str, known: Iterable[str], kind: str = "option") -> str:
    """What is wrong with an option of ``neft sft`` that nobody knows.

    Args:
        word: As it was written, such as ``--lerning-rate``.
        known: The names of options, without dashes before them.
        kind: "option" of a command line, or "key" of a YAML.

    Returns:
        The message, with the closest name.
    """
    dashes = "" if kind == "key" else "--"
    close = difflib.get_close_matches(option_name(word), sorted(known), n=1)
    hint = f"Did you mean `{dashes}{close[0]}`?" if close else "`neft sft --help` lists them."
    return f"Unknown {kind} `{word.lstrip('-') if kind == 'key' else word}`. {hint}"
