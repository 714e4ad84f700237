"""``seqtune data``: what is in a data set, and what is done to it once, before it is used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from seqtune.cli.flags import option, takes
from seqtune.cli.ready import check_numbers, ready
from seqtune.errors import UserError
from seqtune.options import WHERE, LookOptions, PrepareOptions
from seqtune.storage import refusing

# Of a judged training all options but those that say how data are read and held out.
NO_MODEL = (
    *("model", "data", "params", "set", "time_budget", "storage", "valid_users"),
    "sampled_metrics",
)


class Group(TyperGroup):
    """Takes a first word that is no command for a file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the name of the command before the file."""
        known = not args or args[0] in self.commands or args[0].startswith("-")
        return super().parse_args(ctx, args if known else ["about", *args])


app = typer.Typer(
    help="Shows what is in a data set (seqtune data FILE), or prepares one that is larger than "
    "memory.",
    cls=Group,
    no_args_is_help=True,
)


@app.callback()
def _group() -> None:
    pass


@app.command(context_settings={"help_option_names": ["-h", "--help"]})
@takes(LookOptions, without=NO_MODEL)
def about(
    options: LookOptions,
    file: Annotated[str, typer.Argument(help="The interactions, as --data has them.")],
    json_: Annotated[bool, option(WHERE, "Print JSON.", "--json", metavar="")] = False,
) -> None:
    """Shows what is in a data set, and what a protocol makes of it."""
    options = ready(replace(options, data=file))
    from seqtune.data import protocol_of, read
    from seqtune.survey import rows, survey

    dataset = read(options)
    found = survey(dataset, protocol_of(options, dataset, options.seed or 0), options.metric)
    if json_:
        print(json.dumps({"name": dataset.name, "notes": dataset.notes, **found.facts}, indent=2))
        return
    from seqtune.cli.studies import show_table

    for note in dataset.notes:
        print(f"note: {note}")
    show_table([dataset.name, ""], [list(row) for row in rows(found)])
    print(f"\n{found.protocol.sentence(dataset)}\n")
    header = ["counting", f"test {options.metric}", "seconds"]
    values = [
        [one.name, f"{one.test[options.metric]:.4f}", f"{one.seconds:.1f}"] for one in found.floors
    ]
    show_table(header, values)
    for remark in found.remarks():
        print(f"\n{remark}.")


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
