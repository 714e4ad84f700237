"""The command line: ``seqtune tune | train | recommend | models | bench``.

Everything that can be checked in a moment is checked before torch, Ray, MLflow or pandas is
imported: a typing mistake is answered at once, by one sentence on stderr and exit code 2.
"""

from seqtune.cli.app import main

__all__ = ["main"]
