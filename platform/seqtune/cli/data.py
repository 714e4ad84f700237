"""``seqtune data``: what is done to a data set once, before it is used."""

from __future__ import annotations

from pathlib import Path

import typer

from seqtune.cli.flags import takes
from seqtune.cli.ready import check_numbers
from seqtune.errors import UserError
from seqtune.options import PrepareOptions
from seqtune.storage import refusing

app = typer.Typer(help="Prepares data sets that are larger than memory.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
@takes(PrepareOptions)
def prepare(options: PrepareOptions) -> None:
    """Writes interactions into a folder that --data takes, and that no process reads as a whole."""
    given: dict[str, str | None] = {"--data": options.data, "--out": options.out}
    for name, value in given.items():
        if value is None:
            example = "seqtune data prepare --data events.parquet --out events"
            raise UserError(f"{name}: is needed, for example {example}")
    check_numbers(options)
    from seqtune.data.prepare import prepare as make

    wanted = {"user": options.user_col, "item": options.item_col, "time": options.time_col}
    with refusing(f"--out {options.out}"):
        made = make(
            options.data,
            Path(options.out).expanduser(),
            wanted,
            min_user=options.min_user,
            min_item=options.min_item,
            say=print,
        )
    for note in made.notes:
        print(f"note: {note}")
    print(f"{made.describe()}, in {options.out}")
    print(f"Use it with: python tune.py --model sasrec --data {options.out}")
