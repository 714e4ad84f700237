"""``python -m seqtune`` is ``seqtune``."""

from seqtune.cli import main

main()
