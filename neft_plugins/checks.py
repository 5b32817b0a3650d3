"""What the options of ``NEFTConfig`` may be; each error says what was got and what is allowed."""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from neft_plugins import registry
from neft_plugins.keys import ALPHA_KEY, is_none_in_text, key_name, plain_number
from neft_plugins.messages import closest, message, quoted
from neft_plugins.noise import schedules
from neft_plugins.noise.schedules import shown


class NEFTConfigError(ValueError):
    """A wrong value of an option; the message names the option as the user wrote it.

    Attributes:
        option: The option's bare name; None where the error is about none of ``NEFTConfig``.
    """

    def __init__(self, message: str, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


def wrong(template: str, option: str, got: object = None, **values: str) -> NEFTConfigError:
    """The error of an option, from a template of ``messages.message``."""
    return NEFTConfigError(message(template, got=shown(got), **values), option)


def check_choice(option: str, value: Any, allowed: Iterable[str]) -> None:
    """Refuse what is none of these names."""
    allowed = sorted(allowed)
    if not isinstance(value, str) or value not in allowed:
        raise wrong(
            f"`{{{option}}}` must be one of {{allowed}}; got {{got}}.{{hint}}",
            option,
            value,
            allowed=quoted(allowed),
            hint=closest(value, allowed),
        )


def check_alpha(option: str, value: Any) -> None:
    """Of ``alpha`` and ``alpha_end``."""
    hint = " (5 to 15 is typical, 0 is no noise)" if option == "alpha" else ""
    if not schedules.is_number(value) or value < 0:
        raise wrong(f"`{{{option}}}` must be a number >= 0{hint}; got {{got}}.", option, value)
    if value > schedules.MAX_NUMBER:
        raise wrong(
            f"`{{{option}}}` must be at most 1e6, and 5 to 15 is typical; got {{got}}.",
            option,
            value,
        )


def check_length(length: Any, scale: str) -> str | None:
    """The length, which a relative scale does not use."""
    if scale == "relative":
        if length is not None:
            raise wrong(
                "`{length}` is not used with `{scale}: relative`, which scales by each embedding's "
                "RMS; got {got}. Remove `{length}`, or set `{scale}: absolute`.",
                "length",
                length,
            )
        return None
    length = "sequence" if length is None else length
    check_choice("length", length, ("sequence", "row", "noised"))
    return length


def check_warmup(steps: Any) -> None:
    """Of ``warmup_steps``."""
    if not schedules.is_number(steps) or steps < 0 or (steps >= 1 and steps % 1 != 0):
        raise wrong(
            "`{warmup_steps}` must be a number of steps (int >= 0) or a fraction of training in "
            "[0, 1); got {got}.",
            "warmup_steps",
            steps,
        )
    if steps > schedules.MAX_STEPS:
        raise wrong(
            "`{warmup_steps}` must be at most 2**63 steps; got {got}.", "warmup_steps", steps
        )


def check_seed(seed: Any) -> None:
    """Of ``seed``."""
    if seed is None:
        return
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise wrong("`{seed}` must be an int or unset; got {got}.", "seed", seed)
    if not -(2**63) <= seed < 2**64:
        raise wrong(
            "`{seed}` must be from -2**63 to 2**64 - 1, as torch's seeds are; got {got}.",
            "seed",
            seed,
        )


def check_tokens(given: Any) -> str | list[str]:
    """One rule by its name, or several as a list; a text may have commas, as on a command line."""
    parts = [given] if isinstance(given, str) else given
    if not isinstance(parts, list | tuple) or not parts:
        raise wrong(
            "`{tokens}` must be the name of a rule or a list of names; got {got}.", "tokens", given
        )
    names: list[Any] = []
    for part in parts:
        # JSON's brackets and quotes too, which other keys have on a command line.
        names += (
            [name.strip(" []\"'") for name in part.split(",")] if isinstance(part, str) else [part]
        )
    for name in names:
        check_choice("tokens", name, registry.variants("tokens"))
    if {"prompt", "response"} <= {*names}:
        raise wrong(
            "`{tokens}: {got}` chooses no token: of several rules all must choose it, and none is "
            "both of the prompt and of the response. Name one of the two, or `all`.",
            "tokens",
            names,
        )
    return names[0] if len(names) == 1 else names


def check_schedule_args(
    schedule: str, given: Any, alpha: float, alpha_end: float
) -> dict[str, Any]:
    """The arguments of a schedule, which is made with them."""
    return _check_arguments("schedule", schedule, given, (alpha, alpha_end, 100))


def check_distribution_args(distribution: str, given: Any) -> dict[str, Any]:
    """The arguments of a distribution, which is drawn from with them."""
    if isinstance(given, Mapping) and not given:
        return {}  # without torch, for a command that only checks its options
    import torch

    generator = torch.Generator().manual_seed(0)
    return _check_arguments("distribution", distribution, given, ((1, 64), generator))


def _check_arguments(
    kind: registry.Kind, name: str, given: Any, first: tuple[Any, ...]
) -> dict[str, Any]:
    option = f"{kind}_args"
    if not isinstance(given, Mapping):
        raise wrong(
            f"`{{{option}}}` must be a mapping of the {kind}'s arguments; got {{got}}.",
            option,
            given,
        )
    arguments = {argument: plain_number(value) for argument, value in given.items()}
    variant = registry.load(kind, name)
    allowed = list(inspect.signature(variant).parameters)[len(first) :]
    for argument in arguments:
        if argument not in allowed:
            raise wrong(
                f"`{{{option}}}` of {{name}} may be {{allowed}}; got {{got}}.{{hint}}",
                option,
                argument,
                name=repr(name),
                allowed=quoted(allowed) or "nothing: it takes no arguments",
                hint=closest(argument, allowed),
            )
    try:
        variant(*first, **arguments)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise wrong(
            f"`{{{option}}}` of {{name}}: {{problem}}.",
            option,
            name=repr(name),
            problem=str(error).rstrip("."),
        ) from error
    except Exception as error:
        raise registry.failure(kind, name, error) from error
    return arguments


ARGUMENTS_AS_JSON = {
    "schedule_args": '{"power": 2}',
    "distribution_args": '{"p": 0.1}',
    "sparsity_args": '{"every": 20}',
}
"""The options that a command line has as JSON, each with an example."""


def read_arguments(option: str, given: Any) -> Any:
    """The value of one of ``ARGUMENTS_AS_JSON``, from its JSON where it is a text."""
    if not isinstance(given, str):
        return given
    if is_none_in_text(given):
        return None
    try:
        return json.loads(given)
    except ValueError as error:
        key = key_name(option)
        raise NEFTConfigError(
            f"`{key}` must be a mapping of the {option.removesuffix('_args')}'s arguments, or its "
            f"JSON such as '{ARGUMENTS_AS_JSON[option]}'; got {shown(given)} ({error}).",
            option,
        ) from None


def refuse_keys_inside(cfg: Mapping[str, Any]) -> None:
    """Refuse keys of the noise that are not at the top level, where nothing reads them.

    Args:
        cfg: The YAML as it was read.

    Raises:
        NEFTConfigError: With the way out.
    """
    for where, value in cfg.items():
        if str(where).lower().startswith(("neft", "x-")):
            continue
        for key in _all_keys(value):
            if key.startswith("neft"):
                beside = "" if key == ALPHA_KEY else f", beside `{ALPHA_KEY}`"
                raise NEFTConfigError(
                    f"`{key}` is inside `{where}`, where nothing reads it. Write it at the top "
                    f"level of the YAML{beside}. A holder of YAML anchors needs a name that begins "
                    "with `x-`."
                )


def _all_keys(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield str(key)
            yield from _all_keys(inside)
    elif isinstance(value, list | tuple):
        for inside in value:
            yield from _all_keys(inside)
