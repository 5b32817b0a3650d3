"""Commands that start ranks on this machine's CPU, run as a user runs them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from forks import FOLDERS
from helpers import REPO

PROGRAMS = Path(sys.executable).parent
ENVIRONMENT = {
    "ACCELERATE_USE_CPU": "false",  # or accelerate neither shards nor calls DeepSpeed
    "AXOLOTL_DO_NOT_TRACK": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def start(
    command: Iterable[object], log: Path, variables: Mapping[str, object] | None = None
) -> subprocess.Popen[bytes]:
    """A command from the top of the repository, started; what it prints goes to the log."""
    variables = {key: str(value) for key, value in (variables or {}).items()}
    folders = [variables.get("PYTHONPATH", ""), *map(str, FOLDERS)]
    path = os.pathsep.join([variables.get("PATH", ""), str(PROGRAMS), os.environ["PATH"]])
    environment = {**os.environ, **ENVIRONMENT, **variables}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
    environment |= {"PATH": path.strip(os.pathsep)}
    with log.open("wb") as stream:
        return subprocess.Popen(
            list(map(str, command)),
            cwd=REPO,
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # as a terminal, whose Ctrl-C is for all that it started
        )


def wait(processes: Mapping[Path, subprocess.Popen[bytes]], seconds: float = 240) -> None:
    """All of them end well. A launcher that is stopped stops its ranks."""
    end = time.monotonic() + seconds
    try:
        codes = {
            log: process.wait(max(1.0, end - time.monotonic()))
            for log, process in processes.items()
        }
    except subprocess.TimeoutExpired:
        for process in processes.values():
            process.terminate()
            process.wait(60)
        codes = dict.fromkeys(processes, "not done")
    printed = "\n".join(log.read_text(errors="replace")[-3000:] for log in processes)
    assert set(codes.values()) == {0}, f"{list(codes.values())}\n{printed}"
