"""Launch a training script through accelerate, as ``trl sft`` does."""

import subprocess

from accelerate.commands.launch import launch_command, launch_command_parser
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from neft_plugins.config import PREFIX, NEFTConfig
from neft_plugins.trl import sft


def launch_sft(arguments: list[str]) -> int:
    """Check the arguments, then run ``neft_plugins.trl.sft`` under ``accelerate launch``.

    Arguments that the training script does not know (in the YAML too) are accelerate's.

    Args:
        arguments: What follows ``neft sft``.

    Returns:
        The exit code of the training process.

    Raises:
        ValueError: For a wrong value or an unknown ``neft_*`` key, before anything is launched.
    """
    *_, config_rest, command_rest = sft.make_parser(prog="neft sft").parse_args_and_config(
        arguments, return_remaining_strings=True, separate_remaining_strings=True
    )
    rest = config_rest + command_rest
    NEFTConfig.from_keys(
        {key: None for word in rest if (key := word.lstrip("-")).startswith(PREFIX)}
    )
    script_arguments = _without(arguments, command_rest)
    launch_arguments = [
        *resolve_accelerate_config_argument(rest),
        "--module",
        sft.__name__,
        *script_arguments,
    ]
    try:
        launch_command(launch_command_parser().parse_args(launch_arguments))
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


def _without(words: list[str], rest: list[str]) -> list[str]:
    """The words that are not in the rest, which is a subsequence of them."""
    left = iter(rest)
    wanted = next(left, None)
    kept = []
    for word in words:
        if word == wanted:
            wanted = next(left, None)
        else:
            kept.append(word)
    return kept
