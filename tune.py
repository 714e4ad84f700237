"""Tunes a model from a fresh checkout: ``python tune.py --model duorec`` is ``seqtune tune ...``.

Works with and without seqtune installed; its requirements must be there.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "platform"))

if __name__ == "__main__":
    from seqtune.interrupts import INTERRUPTS

    INTERRUPTS.listen()
    try:
        from seqtune.cli import main
    except ModuleNotFoundError as missing:
        sys.exit(f"{missing.name} is not installed; run: pip install -c constraints.txt -e .")
    except KeyboardInterrupt:
        sys.exit(130)
    main("tune")
