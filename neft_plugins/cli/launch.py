"""Launch a training script through accelerate, as ``trl sft`` does."""

import subprocess

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from trl.cli.accelerate_config import resolve_accelerate_config_argument

from neft_plugins.config import NEFTConfig
from neft_plugins.trl import sft
from neft_plugins.trl.checkpoints import check_checkpoint


def launch_sft(arguments: list[str]) -> int:
    """Check the arguments, then run ``neft_plugins.trl.sft`` under ``accelerate launch``.

    Arguments that the training script does not know (in the YAML too) are accelerate's.

    Args:
        arguments: What follows ``neft sft``.

    Returns:
        The exit code of the training process.

    Raises:
        ValueError: For a wrong value, an unknown ``neft_*`` key, a missing dataset or a path that
            is no checkpoint, before anything is launched.
        yaml.YAMLError: If the recipe is not YAML.
    """
    if arguments and arguments[-1] == "--config":
        raise ValueError("`--config` needs the path of a YAML file.")
    script, training, _, mixture, config_rest, command_rest = sft.make_parser(
        prog="neft sft"
    ).parse_args_and_config(
        arguments, return_remaining_strings=True, separate_remaining_strings=True
    )
    rest = config_rest + command_rest
    NEFTConfig.from_keys(dict.fromkeys(_option_names(rest)))
    sft.check_dataset_is_named(script, mixture)
    check_checkpoint(training.resume_from_checkpoint)
    launch_arguments = [
        *resolve_accelerate_config_argument(rest),
        *("--module", sft.__name__),
        *_without(arguments, command_rest),
    ]
    try:
        launch_command(launch_command_parser().parse_args(launch_arguments))
    except subprocess.CalledProcessError as error:
        return error.returncode
    except ChildFailedError as error:  # of several ranks; torchrun has said which one failed
        return error.get_first_failure()[1].exitcode
    except SignalException as stopped:  # Ctrl-C while several ranks run
        return 128 + stopped.sigval
    return 0


def _option_names(words: list[str]) -> list[str]:
    """The options among the words, as keys: ``--neft-tokens=all`` is neft_tokens."""
    options = (word[2:].partition("=")[0] for word in words if word.startswith("--"))
    return [option.replace("-", "_") for option in options]


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
