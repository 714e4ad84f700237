"""``seqtune models``: list the models, or explain one."""

from __future__ import annotations

from typing import Annotated

import typer

from seqtune.catalogue import check_model, model_names
from seqtune.cli.flags import complete_model
from seqtune.cli.pages import explain_model, list_models


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Model to explain; without it all are listed.",
            metavar="[MODEL]",
            autocompletion=complete_model,
        ),
    ] = None,
    names: Annotated[
        bool, typer.Option("--names", help="Bare names, for scripts.", metavar="")
    ] = False,
    space: Annotated[
        bool,
        typer.Option("--space", help="The model's search space, as its YAML file.", metavar=""),
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="All models, as docs/models.md.", metavar="")
    ] = False,
) -> None:
    """Lists the models, or explains one: what it does, its cost and its hyperparameters."""
    if names:
        print("\n".join(model_names()))
    elif markdown:
        from seqtune.report.handbook import page

        print(page(), end="")
    elif name is None:
        list_models()
    elif space:
        from seqtune.space import shipped

        print(shipped(check_model(name, "models")).read_text(encoding="utf-8"), end="")
    else:
        explain_model(check_model(name, "models"))
