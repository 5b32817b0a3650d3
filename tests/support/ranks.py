"""Several ranks on this machine's CPU: real processes and a real gloo group.

Each rank is forked from a server that has imported the hosts once, so that a run of two ranks takes
seconds. The launchers themselves are run by the users of commands.py.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from forks import Forks, printing_to

FORKS = Forks("ranks_preload")


class Ranks:
    """The processes of one run, started.

    Args:
        folder: Where each rank's output (``rank0.txt``) and result go.
        function: What each rank calls; a function of an importable module.
        arguments: Its arguments.
        world_size: How many ranks.
        environment: Variables beside those of the launcher.
        forks: What they are forked from.
    """

    def __init__(
        self,
        folder: Path,
        function: Callable[..., Any],
        *arguments: Any,
        world_size: int = 2,
        environment: Mapping[str, str] | None = None,
        forks: Forks = FORKS,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | dict(environment or {})
        self.processes: list[Any] = []
        for rank in range(world_size):
            launcher = shared | {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
            launcher |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            alone = dict(environment or {}) if world_size == 1 else launcher
            process = forks.start(_run, folder, rank, alone, function, arguments)
            self.processes.append(process)

    def wait(self, seconds: float = 120) -> list[int]:
        """The exit codes of all ranks; they are killed, and it is an error, after so long."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        hung = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        self.kill()
        if hung:
            raise TimeoutError(f"Ranks {hung} were not done in {seconds} s.\n{self.printed()}")
        return [process.exitcode or 0 for process in self.processes]

    def wait_as_a_launcher(self, seconds: float = 120) -> list[int]:
        """As torchrun: when one rank fails, the others are sent SIGTERM."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            codes = [process.exitcode for process in self.processes]
            if any(codes):  # not None, not 0
                for process in self.processes:
                    process.terminate()
            if None not in codes:
                break
            time.sleep(0.05)
        return self.wait(max(1.0, end - time.monotonic()))

    def kill(self) -> None:
        """SIGKILL to every rank that is left."""
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()

    def printed(self, rank: int | None = None) -> str:
        """The end of what a rank, or every rank, has printed."""
        ranks = range(len(self.processes)) if rank is None else [rank]
        return "\n".join(self.output(each)[-4000:] for each in ranks)

    def output(self, rank: int) -> str:
        """All that a rank has printed so far."""
        path = self.folder / f"rank{rank}.txt"
        return path.read_text() if path.exists() else ""

    def results(self, seconds: float = 120) -> list[Any]:
        """What the function returned on each rank."""
        codes = self.wait(seconds)
        assert not any(codes), (codes, self.printed())
        return [
            torch.load(self.folder / f"rank{r}.pt", weights_only=False) for r in range(len(codes))
        ]


def run_on_ranks(folder: Path, function: Callable[..., Any], *arguments: Any, **how: Any) -> list:
    """``function(*arguments)`` on each rank; what it returned there."""
    return Ranks(folder, function, *arguments, **how).results()


def _run(
    folder: Path,
    rank: int,
    environment: dict[str, str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= environment
    # As at a terminal: what is started in the background is born deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with printing_to(folder / f"rank{rank}.txt"):
        import gloo_ranks

        gloo_ranks.prepare()
        result = function(*arguments)
        torch.save(result, folder / f"rank{rank}.pt")
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # see the end of neft_plugins.trl.sft.main
