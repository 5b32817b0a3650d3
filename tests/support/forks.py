"""Processes for the tests, forked from a server that has imported the slow hosts once."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any
from unittest import mock

SUPPORT = Path(__file__).parent
FOLDERS = [SUPPORT, SUPPORT / "cpu_ranks"]


@contextmanager
def printing_to(path: str | Path) -> Iterator[None]:
    """All that this process prints, its errors too, goes to a file from now on."""
    stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for target in (1, 2):
        os.dup2(stream, target)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(stream), "w", buffering=1) for _ in range(2))
    try:
        yield
    except BaseException:
        traceback.print_exc()
        raise


class Forks:
    """A server of its own: Python's has one set of imports for all that a process starts.

    Args:
        preload: The module that the server imports.
    """

    def __init__(self, preload: str) -> None:
        self.server = forkserver.ForkServer()
        self.server.set_forkserver_preload([preload])
        # The server looks for what it is to import along this path alone.
        folders = [*map(str, FOLDERS), os.environ.get("PYTHONPATH", "")]
        self.path = {"PYTHONPATH": os.pathsep.join(filter(None, folders))}

    def start(self, function: Callable[..., None], *arguments: Any) -> Any:
        """A process that calls the function, started."""
        process = get_context("forkserver").Process(target=function, args=arguments)
        connect = self.server.connect_to_new_process
        with mock.patch.object(forkserver, "connect_to_new_process", connect):
            with mock.patch.dict(os.environ, self.path):
                process.start()
        return process
