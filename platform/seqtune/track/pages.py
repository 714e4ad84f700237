"""MLflow's pages: the links to a study, and the descriptions that stand there."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from seqtune.track.store import shown

PARENT, STATUS = "mlflow.parentRunId", "seqtune.status"  # tags of a trial's run
DIMENSIONS = "seqtune.dimensions"  # tag: what a study searches
NOTE = "mlflow.note.content"  # tag: the description of an experiment, a run or a model


@dataclass(frozen=True)
class Links:
    """Where a person finds a study in MLflow's pages.

    Every link names the kind of work. Without it MLflow opens the pages for GenAI, unless the
    person's browser remembers another choice; nothing that is kept in the store changes that.
    """

    uri: str
    experiment_id: str
    run_id: str

    @property
    def view_key(self) -> str:
        """The key of the prepared view."""
        return f"seqtune-{self.run_id[:8]}"

    @property
    def command(self) -> str | None:
        """The command that opens the pages; None where the store is a server already."""
        if self.uri.startswith("http"):
            return None
        return shlex.join(["mlflow", "ui", "--backend-store-uri", shown(self.uri)])

    @property
    def base(self) -> str:
        """Where the pages are."""
        return shown(self.uri) if self.uri.startswith("http") else "http://127.0.0.1:5000"

    @property
    def table(self) -> str:
        """The trials, best first, with their parameters and metrics."""
        return f"{self.base}/{self._runs}&viewStateShareKey={self.view_key}"

    @property
    def charts(self) -> str:
        """The prepared view: curves, parallel coordinates, scatter and the trials side by side."""
        return f"{self.table}&compareRunsMode=CHART"

    def charts_at(self, page: str) -> str:
        """Returns the same where the pages are shown at another address."""
        return self.charts.replace(self.base, page, 1)

    @property
    def plain(self) -> str:
        """The trials by a search alone, should a release of MLflow not know the prepared view.

        They are sorted by name: sorted by time, MLflow folds them under the run of the study.
        """
        query = quote(f"tags.`{PARENT}` = '{self.run_id}'", safe="")
        by_name = f"orderByKey={quote('tags.`mlflow.runName`', safe='')}&orderByAsc=true"
        return f"{self.base}/{self._runs}&searchFilter={query}&{by_name}"

    @property
    def note(self) -> str:
        """The links as a description on MLflow's pages, from wherever these are opened."""
        charts, plain = (link.removeprefix(f"{self.base}/") for link in (self.charts, self.plain))
        return f"The trials are in [the prepared view]({charts}) and in [a plain list]({plain})."

    @property
    def _runs(self) -> str:
        return f"#/experiments/{self.experiment_id}/runs?workflowType=machine_learning"


def described(tags: Mapping[str, str], *more: str) -> str:
    """Describes a study, or a model of it, from its tags: what it was made of, and how.

    ``more`` are sentences that come first: the verdict, the links.
    """
    model, data = tags.get("seqtune.model"), tags.get("seqtune.data")
    command = tags.get("seqtune.command")
    parts = [
        f"The model is {model} and the data are {data}." if model and data else "",
        *more,
        tags.get("seqtune.protocol", ""),
        f"The command was `{command}`." if command else "",
    ]
    return "\n\n".join(part for part in parts if part)
