"""The process that ``neft sft`` launches, on each rank: Ctrl-C ends it without a traceback."""

import os
import sys

STOPPED = 130
"""Exit code of what Ctrl-C ended."""


def main() -> None:
    """Train; at Ctrl-C, while Python still imports too, end with one line of the first rank."""
    try:
        from neft_plugins.trl import sft

        sft.run(sys.argv[1:])
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            sys.stdout.flush()  # in a log of both, the last line is the last
            print("\nStopped.", file=sys.stderr)
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
