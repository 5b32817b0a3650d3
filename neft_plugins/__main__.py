"""``python -m neft_plugins`` is ``neft``."""

from neft_plugins.cli import main

main()
