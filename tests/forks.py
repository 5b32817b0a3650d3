"""Processes for the tests, forked from a server that has imported the slow hosts once."""

import os
from collections.abc import Callable
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any
from unittest import mock

TESTS = Path(__file__).parent
FOLDERS = [TESTS, TESTS / "distributed", TESTS / "cpu_ranks"]


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
