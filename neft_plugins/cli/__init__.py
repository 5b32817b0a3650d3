"""The ``neft`` command."""

import sys


def main() -> None:
    """Entry point of the ``neft`` console script."""
    try:
        from neft_plugins.cli.commands import neft
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(f"`neft` needs {error.name}; install it with pip install 'neft-plugins[trl]'")
    neft()
