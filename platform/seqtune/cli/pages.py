"""Pages about models."""

from __future__ import annotations

import sys
from pathlib import Path

from seqtune.catalogue import declaration, model_names


def list_models() -> None:
    """Prints the models, one in a line."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column(style="bold cyan", no_wrap=True)
    for name in model_names():
        table.add_row(name, declaration(name).summary)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n  Explain one: {_explain_command()}", style="dim")


def _explain_command() -> str:
    program = Path(sys.argv[0]).name
    return "python tune.py --explain NAME" if program == "tune.py" else "seqtune models NAME"


def explain_model(model: str) -> None:
    """Prints what a model does, its cost and its hyperparameters."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    from seqtune.report.chapters import LETTERS, Chapter, Row, hung

    chapter = Chapter.of(model)
    console = Console(highlight=False)

    def show(text: str, indent: int = 2, style: str = "") -> None:
        console.print(Padding(Text(text, style), (0, 0, 0, indent), expand=False))

    def show_rows(title: str, rows: tuple[Row, ...]) -> None:
        console.print(Text(f"\n{title}", "bold"))
        for row in rows:
            line = Text.assemble((f"  {row.name}", "cyan"), (f" = {row.default}", "bold"))
            if row.usual:
                line.append(f" (usually {row.usual})")
            if row.allowed:
                line.append(f"   {row.allowed}", "dim")
            console.print(line)
            show(row.description, 6)
            if row.origin:
                show(f"default from: {row.origin}", 6, "dim")
            if row.searched:
                show(f"searched: {row.searched}", 6, "green")

    console.print(Text(f"\n{model}", "bold cyan"))
    show(chapter.summary)
    if paper := f"{chapter.venue}  {chapter.link}".strip():
        show(paper, style="dim")
    for block in chapter.text:
        console.print()
        if block.kind == "formula":
            show(hung(block.text, console.width - 6), 6)
        else:
            show(("- " if block.kind == "point" else "") + block.text.replace("``", ""))
    if chapter.cost:
        console.print(Text("\nCost", "bold"))
        show(chapter.cost.replace("``", ""))
        show(f"({LETTERS})", style="dim")
    show_rows(f"Hyperparameters of {model}", chapter.own)
    show_rows("Of every model", chapter.shared)
    show("\n".join(f"{fact.name} is {fact.told}" for fact in chapter.facts))
    fix = f"Fix one with --set NAME=VALUE. seqtune models {model} --space prints what is searched."
    console.print(Text(f"\n{fix}", "dim"))
