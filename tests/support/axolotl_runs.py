"""Axolotl runs for the tests: each in a process of its own, forked after the slow imports."""

import json
import multiprocessing
import os
import sys
import textwrap
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from forks import Forks, printing_to
from helpers import MODEL
from recorder import Call

PLUGIN = "neft_plugins.NEFTPlugin"
RECORDER = "axolotl_recorder.RecorderPlugin"
BASE = {
    "base_model": MODEL,
    "sequence_len": 128,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "optimizer": "adamw_torch",
    "lr_scheduler": "constant",
    "bf16": False,
    "tf32": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "dataloader_num_workers": 0,  # or each run forks some, for a few rows
    "seed": 7,
    "plugins": [PLUGIN, RECORDER],
}
FORKS = Forks("axolotl_runs_preload")


@dataclass
class Run:
    """What a run of Axolotl did."""

    exit_code: int
    printed: str
    output: Path
    rank: int = 0

    @property
    def passes(self) -> list["GivenCall"]:
        """Every call of the embedding, with what the model was given."""
        assert self.exit_code == 0, self.printed[-6000:]
        return [GivenCall(**each) for each in torch.load(self.output / f"passes{self.rank}.pt")]

    @property
    def log(self) -> dict[str, Any]:
        assert self.exit_code == 0, self.printed[-6000:]
        return json.loads((self.output / f"log{self.rank}.json").read_text())


@dataclass
class GivenCall(Call):
    """A call, and the model's arguments at the time."""

    given: dict[str, Any]


def run_axolotl(
    folder: Path, command: str = "train", options: dict[str, Any] | None = None, **keys: Any
) -> Run:
    """``axolotl COMMAND`` on a config of a tiny Llama, with these keys beside ``BASE``.

    Args:
        folder: Where the config, the log and the output go; a second run there finds the first's.
        command: train, preprocess or evaluate.
        options: What the command line sets.
        **keys: Axolotl's YAML; None takes a key of ``BASE`` away.
    """
    config, log = write_config(folder, keys), folder / "log.txt"
    child = FORKS.start(_run, command, config, str(log), options or {})
    child.join(240)
    if child.is_alive():
        child.kill()
        raise TimeoutError(log.read_text()[-6000:])
    return Run(child.exitcode or 0, log.read_text(), folder / "out")


def write_config(folder: Path, keys: dict[str, Any]) -> str:
    """The path of a YAML with these keys beside ``BASE``."""
    paths = {"output_dir": str(folder / "out"), "dataset_prepared_path": str(folder / "prepared")}
    config = {key: value for key, value in (BASE | paths | keys).items() if value is not None}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


def _run(command: str, config: str, log: str, options: dict[str, Any]) -> None:
    with printing_to(log):
        call_axolotl(command, config, options)


def run_code(folder: Path, code: str) -> Run:
    """Python code in a process that has imported Axolotl."""
    child = FORKS.start(_run_code, textwrap.dedent(code), str(folder / "log.txt"))
    child.join(240)
    if child.is_alive():
        child.kill()
        raise TimeoutError((folder / "log.txt").read_text()[-6000:])
    return Run(child.exitcode or 0, (folder / "log.txt").read_text(), folder)


def _run_code(code: str, log: str) -> None:
    with printing_to(log):
        exec(code, {"__name__": "__main__"})


def call_axolotl(
    command: str, config: str, options: dict[str, Any] | None = None, folder: str = ""
) -> None:
    """``axolotl COMMAND`` in this process, which is forked from one that has imported Axolotl.

    Args:
        command: train, preprocess or evaluate.
        config: Path of the YAML.
        options: What the command line sets.
        folder: Where the command is given; unset, beside the config.
    """
    multiprocessing.set_start_method("fork", force=True)  # as in a run of its own, not this one's
    sys.argv = ["axolotl"]
    os.chdir(folder or Path(config).parent)
    from axolotl.logging_config import configure_logging

    configure_logging()
    import_module(f"axolotl.cli.{command}").do_cli(config, **options or {})
