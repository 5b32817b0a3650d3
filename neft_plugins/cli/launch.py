"""Launch a training script through accelerate, as ``trl sft`` does."""

import re
import signal
import subprocess
import warnings
from argparse import Namespace
from itertools import pairwise
from typing import Any

import yaml

from neft_plugins.checks import ARGUMENTS_AS_JSON, read_arguments, refuse_keys_inside
from neft_plugins.cli.option_names import refuse_unknown
from neft_plugins.cli.train import STOPPED
from neft_plugins.config import NEFTConfig, NEFTWarning
from neft_plugins.keys import key_name, option_name, read_yaml, takes_arguments
from neft_plugins.messages import NO_DATASET, NO_MODEL
from neft_plugins.sparsity.config import SparsityConfig

SCRIPT = "neft_plugins.cli.train"
"""What is launched, as a module."""
PATIENCE = 10.0
"""Seconds in which a Ctrl-C for all that a terminal runs ends the training process."""


def launch_sft(arguments: list[str]) -> int:
    """Check the arguments, then run the training script under ``accelerate launch``.

    Options that the training script does not know (in the YAML too) are accelerate's. What can be
    refused without TRL, whose import takes seconds, is refused before it.

    Args:
        arguments: What follows ``neft sft``.

    Returns:
        The exit code of the training process.

    Raises:
        ValueError: For a wrong value, an unknown option or key, no dataset or model, or a path
            that is no checkpoint, before anything is launched.
        OSError: If the recipe cannot be read.
        yaml.YAMLError: If the recipe is not YAML.
    """
    words = [part for word in arguments for part in _config_apart(word)]
    _check_without_trl(words)

    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    from neft_plugins.trl import sft
    from neft_plugins.trl.checkpoints import check_checkpoint
    from neft_plugins.trl.options import launch_parser, split_options

    parser, launcher = sft.make_parser(prog="neft sft"), launch_parser()
    values, own, launch_words = split_options(words, parser, launcher)
    _check_dataset(values)
    launch = launcher.parse_args([*launch_words, "--module", SCRIPT, *own])
    if launch.training_script != SCRIPT:
        word = launch.training_script
        raise ValueError(f"`{word}` is no option's value. Write `--OPTION {word}`, or take it out.")
    if launch.accelerate_config is not None:
        named = ["--accelerate_config", launch.accelerate_config]
        launch.config_file = resolve_accelerate_config_argument(named)[1]
    _, training, *_ = parser.parse_args_and_config(words, return_remaining_strings=True)
    check_checkpoint(training.resume_from_checkpoint)
    sft.named_model(values.model_name_or_path)
    return _launch(launch)


def _config_apart(word: str) -> list[str]:
    """``--config=X`` as TRL knows it: two words."""
    return word.split("=", 1) if word.startswith("--config=") else [word]


def _check_without_trl(words: list[str]) -> None:
    """Refuse what needs no TRL to be seen to be wrong."""
    if {"-h", "--help"} & {*words}:
        return
    recipe = _read_recipe(words)
    refuse_keys_inside(recipe)
    keys = recipe | _given_options(words)
    for option in ARGUMENTS_AS_JSON:
        key = key_name(option)
        if key in keys:
            keys[key] = read_arguments(option, keys[key])
    NEFTConfig.from_keys(keys, warn=False)
    SparsityConfig.from_keys(keys)
    refuse_unknown(words, recipe)
    if not (keys.get("dataset_name") or keys.get("datasets")):
        raise ValueError(NO_DATASET)
    if not keys.get("model_name_or_path"):
        raise ValueError(NO_MODEL)


def _read_recipe(words: list[str]) -> dict[str, Any]:
    """The keys of the YAML that ``--config`` names; empty without one."""
    if "--config" not in words:
        for before, word in pairwise(["", *words]):
            if re.match("--?conf", word):
                raise ValueError(f"Unknown option `{word}`. Did you mean `--config`?")
            if word.endswith((".yaml", ".yml")) and not before.startswith("-"):
                raise ValueError(f"`{word}` is no option's value. Write `--config {word}`.")
        return {}
    if words[-1] == "--config":
        raise ValueError("`--config` needs the path of a YAML file.")
    return read_yaml(words[words.index("--config") + 1])


def _given_options(words: list[str]) -> dict[str, Any]:
    """The options among the words as keys; values as YAML reads them, JSON as it is."""
    options = {}
    for word, after in pairwise([*words, ""]):
        if word.startswith("--"):
            _, is_joined, value = word.partition("=")
            name, text = option_name(word), value if is_joined else after
            options[name] = text if takes_arguments(name) else _as_in_yaml(text)
    return options


def _as_in_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _check_dataset(values: Namespace) -> None:
    if not values.datasets and not values.dataset_name:
        raise ValueError(NO_DATASET)
    if values.datasets and values.dataset_name:
        warnings.warn(
            f"`datasets` and `dataset_name` are both set; `dataset_name: {values.dataset_name}` "
            "is not used.",
            NEFTWarning,
            stacklevel=3,
        )


def _launch(arguments: Namespace) -> int:
    """Run what accelerate's arguments say; the exit code, as a shell has it."""
    from accelerate.commands.launch import launch_command
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(arguments)
    except subprocess.CalledProcessError as error:
        return _exit_code(error.returncode)
    except ChildFailedError as error:  # of several ranks; torchrun has said which one failed
        return _exit_code(error.get_first_failure()[1].exitcode)
    except SignalException as stopped:  # Ctrl-C while several ranks run
        return 128 + stopped.sigval
    except KeyboardInterrupt:  # while one process runs
        _end_training()
        return STOPPED
    return 0


def _exit_code(code: int) -> int:
    """That of a shell: 128 + n for a process that signal n ended, which is -n for Python."""
    return code if code >= 0 else 128 - code


def _end_training() -> None:
    """Wait for the training process, which a terminal's Ctrl-C has reached too.

    If it goes on, the Ctrl-C was for this process alone, and is handed on.
    """
    import psutil

    training = [child for child in psutil.Process().children() if SCRIPT in child.cmdline()]
    _, training = psutil.wait_procs(training, timeout=PATIENCE)
    for process in training:
        process.send_signal(signal.SIGINT)
    psutil.wait_procs(training)
