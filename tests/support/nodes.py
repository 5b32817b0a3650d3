"""The scripts of recipes/multi_node on two nodes, which are this machine: one rank each.

Slurm is a `srun` that runs its command once per node, and a `scontrol`.
"""

import os
import socket
from pathlib import Path
from typing import Any

import commands

SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do SLURM_NODEID=$node "$@" & done
code=0
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do wait -n || code=$?; done
exit "$code"
"""
SCONTROL = """#!/usr/bin/env bash
[[ $* == "show hostnames node[1-2]" ]] && printf 'localhost\\nnode2\\n'
"""


def by_hand(
    launcher: str, command: list[str], variables: dict[str, Any], folder: Path
) -> dict[Path, Any]:
    """The script on each of two machines, which are this one."""
    script = ["bash", f"recipes/multi_node/{launcher}.sh"]
    shared = variables | {"NODES": 2, "HEAD": "localhost", "PORT": free_port()}
    logs = [folder / f"node{rank}.txt" for rank in range(2)]
    return {
        log: commands.start([*script, *command], log, shared | {"NODE_RANK": rank})
        for rank, log in enumerate(logs)
    }


def on_slurm(
    launcher: str, command: list[str], variables: dict[str, Any], folder: Path
) -> dict[Path, Any]:
    """The script as Slurm runs it, on the first of a job's nodes."""
    (folder / "bin").mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    slurm = {
        "PATH": folder / "bin",
        "LAUNCHER": launcher,
        "SLURM_JOB_ID": free_port() - 20000,  # the script makes the port of it
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": 2,
        "SLURM_NODEID": 0,  # of the node where the script runs, and of no other
    }
    log = folder / "job.txt"
    script = ["bash", "recipes/multi_node/slurm.sh"]
    return {log: commands.start([*script, *command], log, variables | slurm)}


def free_port() -> int:
    """One of those that slurm.sh may choose."""
    for port in range(20000 + os.getpid() % 9000, 30000):
        with socket.socket() as free:
            try:
                free.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError("No port between 20000 and 30000 is free.")
