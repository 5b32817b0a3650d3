"""The keys of YAML files and command lines: their names, and their values as read from there."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

ALPHA_KEY = "neftune_noise_alpha"
"""The key of ``alpha``, which every ``TrainingArguments`` has."""
PREFIX = "neft_"
"""What the keys of the other options begin with."""


def key_name(option: str) -> str:
    """The key of an option.

    >>> key_name("alpha"), key_name("schedule")
    ('neftune_noise_alpha', 'neft_schedule')
    """
    return ALPHA_KEY if option == "alpha" else PREFIX + option


def is_none_in_text(value: object) -> bool:
    """Whether a value is what ``--neft_length None`` gives on a command line: unset, as text.

    As the parser of newer TRL has it for its own arguments.
    """
    return isinstance(value, str) and value.lower() in ("none", "null")


def number_in_text(value: Any) -> Any:
    """A number that YAML reads as text, such as 1e-2, as a number; anything else as it is.

    >>> number_in_text("1e-2"), number_in_text("20"), number_in_text("linear")
    (0.01, 20, 'linear')
    """
    if isinstance(value, Mapping):
        return {name: number_in_text(each) for name, each in value.items()}
    if not isinstance(value, str):
        return value
    for number in (int, float):
        try:
            return number(value) if math.isfinite(float(value)) else value
        except ValueError:
            continue
    return value


def plain_number(value: Any) -> Any:
    """A number of another package (numpy's) as Python's, which JSON knows; others as they are."""
    if isinstance(value, Integral):
        return value if isinstance(value, bool) else int(value)
    return float(value) if isinstance(value, Real) else value
