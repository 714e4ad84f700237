"""``python -m seqtune`` is ``seqtune``."""

from __future__ import annotations

import sys

from seqtune.interrupts import INTERRUPTS


def main() -> None:
    """Runs the command line; Ctrl-C while it is being loaded ends it without a page of where."""
    INTERRUPTS.listen()
    try:
        from seqtune.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
