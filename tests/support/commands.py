"""Commands that start ranks on this machine's CPU, run as a user runs them."""

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from forks import FOLDERS
from helpers import REPO
from ranks import Ranks

PROGRAMS = Path(sys.executable).parent
ENVIRONMENT = {
    "ACCELERATE_USE_CPU": "false",  # or accelerate neither shards nor calls DeepSpeed
    "AXOLOTL_DATASET_NUM_PROC": "0",  # or it starts three processes to prepare a few rows
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
            preexec_fn=_hear_ctrl_c,
        )


def _hear_ctrl_c() -> None:
    """As at a terminal: what a shell starts in the background is born deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


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


def run_script(
    folder: Path, words: list[str], packages: Path | None = None, **how: Any
) -> tuple[int, str]:
    """A Python script in processes that have imported the hosts already.

    Args:
        folder: For what it prints.
        words: ``-m MODULE`` or a script's path from the top of the repository, and arguments.
        packages: A folder of packages that are installed for it.
        **how: ``world_size`` (1) and ``environment``, as in ``Ranks``.

    Returns:
        Its exit code, and all that it printed; of several ranks, the first's.
    """
    script = Ranks(folder, _run_script, words, packages, **{"world_size": 1} | how)
    codes = script.wait_as_a_launcher(240)
    return next(filter(None, codes), 0), script.output(0) if not any(codes) else script.printed()


def _run_script(words: list[str], packages: Path | None) -> None:
    os.chdir(REPO)
    os.environ["COLUMNS"] = "160"
    sys.path[:0] = [str(packages)] if packages else []
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
