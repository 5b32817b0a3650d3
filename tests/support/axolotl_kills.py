"""A run of Axolotl that is killed as soon as a checkpoint counts as complete."""

from pathlib import Path
from typing import Any

from axolotl_runs import FORKS, call_axolotl, write_config
from forks import printing_to
from kills import dies_when_complete


def train_until_complete(folder: Path, step: int, **keys: Any) -> int:
    """``axolotl train``, killed at that step's checkpoint; its exit code."""
    child = FORKS.start(_train, write_config(folder, keys), str(folder / "log.txt"), step)
    child.join(240)
    if child.is_alive():
        child.kill()
        raise TimeoutError((folder / "log.txt").read_text()[-6000:])
    return child.exitcode


def _train(config: str, log: str, step: int) -> None:
    with printing_to(log), dies_when_complete(step):
        call_axolotl("train", config)
