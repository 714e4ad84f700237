"""MLflow's pages: the links to a study, and the view that is prepared for it.

The pages keep how they look ("saved views") as JSON in a tag of the experiment. The format is not
documented; this is what release 3.17 reads, and a test looks at the page.
"""

from __future__ import annotations

import base64
import json
import shlex
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from seqtune.track.store import shown

Json = dict[str, Any]

PARENT, STATUS = "mlflow.parentRunId", "seqtune.status"  # tags of a trial's run


@dataclass(frozen=True)
class Links:
    """Where a person finds a study in MLflow's pages."""

    uri: str
    experiment_id: str
    run_id: str
    view_key: str

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
        return f"{self._runs}?workflowType=machine_learning&viewStateShareKey={self.view_key}"

    @property
    def charts(self) -> str:
        """The prepared view: curves, parallel coordinates, scatter and the trials side by side."""
        return f"{self.table}&compareRunsMode=CHART"

    @property
    def plain(self) -> str:
        """The trials by a search alone, should a release of MLflow not know the prepared view."""
        query = quote(f"tags.`{PARENT}` = '{self.run_id}'", safe="")
        return f"{self._runs}?searchFilter={query}"

    @property
    def _runs(self) -> str:
        return f"{self.base}/#/experiments/{self.experiment_id}/runs"


def view(
    run_id: str, metric: str, dimensions: Sequence[str], axes: Sequence[str], losses: Sequence[str]
) -> Json:
    """Returns the state of the page of runs that shows a study's trials, best first.

    ``dimensions`` become columns of the table. ``axes``, those of them that every trial has, span
    the parallel coordinates, which leave out a run that lacks one.
    """
    best = f"best/{metric}"
    parallel = {"selectedParams": list(axes), "selectedMetrics": [best], "showAllRuns": True}
    lines = [LINE | {"metricKey": m, "selectedMetricKeys": [m]} for m in (metric, *losses)]
    dots = [
        {"xaxis": {"key": name, "type": "PARAM"}, "yaxis": {"key": best, "type": "METRIC"}}
        for name in axes
    ]
    difference = {
        "compareGroups": ["Parameters", "Model metrics"],
        "showChangeFromBaseline": False,
        "showDifferencesOnly": True,
        "baselineColumnUuid": "",
    }
    sections: list[tuple[str, str, list[Json], int, int]] = [  # kind, name, charts, columns, height
        ("PARALLEL", "Hyperparameters together", [parallel], 1, 400),
        ("LINE", "Curves", lines, 2, 360),
        ("DIFFERENCE", "Trials side by side", [difference], 1, 400),
        ("SCATTER", "One hyperparameter at a time", dots, 3, 360),
    ]
    columns = [
        f"metrics.`{best}`",
        *(f"params.`{name}`" for name in dimensions),
        f"tags.`{STATUS}`",
    ]
    same = {"deleted": False, "isGenerated": False}
    return {
        "searchFilter": f"tags.`{PARENT}` = '{run_id}'",
        "orderByKey": f"metrics.`{best}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {f"metrics.`{best}`": 160},
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "autoRefreshEnabled": True,
        "compareRunCharts": [
            {
                "uuid": f"{kind}-{k}",
                "type": kind,
                "metricSectionId": kind,
                "runsCountToCompare": 100,
            }
            | same
            | chart
            for kind, _, charts, _, _ in sections
            for k, chart in enumerate(charts)
        ],
        "compareRunSections": [
            {"uuid": kind, "name": name, "columns": wide, "cardHeight": high}
            | {"display": True, "isReordered": True}
            | same
            for kind, name, _, wide, high in sections
        ],
    }


LINE: Json = {
    "xAxisKey": "step",
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "selectedXAxisMetricKey": "",
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "range": {},
    "lineSmoothness": 0,
    "ignoreOutliers": False,
    "useGlobalXaxisKey": False,
    "useGlobalLineSmoothing": False,
}


def deflated(state: Json) -> str:
    """Returns a page's state as MLflow stores it."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
