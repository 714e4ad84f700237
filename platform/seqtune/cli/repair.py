"""``seqtune repair``: make lost or damaged files of a study anew."""

from __future__ import annotations

from typing import Annotated

import typer

from seqtune.cli.ready import check_name, lasting
from seqtune.options import RESULTS
from seqtune.storage import check_place


def repair(
    name: Annotated[str, typer.Argument(help="Study to repair.", metavar="NAME")],
    storage: Annotated[
        str, typer.Option(help="Look for the study in this folder.", metavar="FOLDER")
    ] = RESULTS,
) -> None:
    """Makes lost or damaged files of a study anew from those that are left."""
    check_name("NAME", name)
    check_place("--storage", storage)
    from seqtune.study import repair

    done = repair.repair(name, lasting(storage))
    print("\n".join(done) if done else f"Nothing is missing in study {name}.")
