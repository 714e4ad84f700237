"""What MLflow does not document, one function each.

All of it was seen to work with the release in ``SEEN``. A test fails where another release is
installed, and says what to look at.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqtune.track.pages import PARENT, STATUS

Json = dict[str, Any]

SEEN = "3.17.2"


def make_store(path: Path) -> None:
    """Makes the tables of a store in a SQLite file, as the first client of one would."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(f"sqlite:///{path}")
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()


def save_view(client: Any, experiment_id: str, key: str, name: str, state: Json) -> None:
    """Saves a view of the page of runs as a tag of the experiment; ``Links`` opens it by its key.

    The pages keep how they look ("saved views") in such tags, deflated.
    """
    now = int(time.time() * 1000)
    saved = {"name": name, "createdAt": now, "updatedAt": now, "state": deflated(state)}
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{key}", json.dumps(saved))


def show_version(client: Any, model_id: str, name: str, version: str) -> None:
    """Makes the page of a logged model name its registered version.

    A server sets the tag by itself, and a SQLite store does not.
    """
    versions = json.dumps([{"name": name, "version": int(version)}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": versions})


def view(
    run_id: str, metric: str, dimensions: Sequence[str], axes: Sequence[str], losses: Sequence[str]
) -> Json:
    """Returns the state of the page of runs that shows a study's trials, best first.

    ``dimensions`` become columns of the table. ``axes``, those of them that every trial has, span
    the parallel coordinates, which leave out a run that lacks one.
    """
    best = f"best/{metric}"
    columns = [f"metrics.`{best}`", *(f"params.`{d}`" for d in dimensions), f"tags.`{STATUS}`"]
    return TABLE | {
        "searchFilter": f"tags.`{PARENT}` = '{run_id}'",
        "orderByKey": f"metrics.`{best}`",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {f"metrics.`{best}`": 160},
        **_charts(best, [metric, *losses], axes),
    }


def _charts(best: str, curves: Sequence[str], axes: Sequence[str]) -> Json:
    parallel = {"selectedParams": list(axes), "selectedMetrics": [best], "showAllRuns": True}
    lines = [LINE | {"metricKey": m, "selectedMetricKeys": [m]} for m in curves]
    dots = [
        {"xaxis": {"key": name, "type": "PARAM"}, "yaxis": {"key": best, "type": "METRIC"}}
        for name in axes
    ]
    sections: list[tuple[str, str, list[Json], int, int]] = [  # kind, name, charts, columns, height
        ("PARALLEL", "Hyperparameters together", [parallel], 1, 400),
        ("LINE", "Curves", lines, 2, 360),
        ("DIFFERENCE", "Trials side by side", [DIFFERENCE], 1, 400),
        ("SCATTER", "One hyperparameter at a time", dots, 3, 360),
    ]
    same = {"deleted": False, "isGenerated": False}
    charts = [
        {"uuid": f"{kind}-{k}", "type": kind, "metricSectionId": kind, "runsCountToCompare": 100}
        | same
        | chart
        for kind, _, of_kind, _, _ in sections
        for k, chart in enumerate(of_kind)
    ]
    places = [
        {"uuid": kind, "name": name, "columns": wide, "cardHeight": high}
        | {"display": True, "isReordered": True}
        | same
        for kind, name, _, wide, high in sections
    ]
    return {"compareRunCharts": charts, "compareRunSections": places}


TABLE: Json = {
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "runsHiddenMode": "SHOW_ALL",
    "viewMaximized": False,
    "runListHidden": False,
    "isAccordionReordered": True,
    "hideEmptyCharts": True,
    "groupBy": None,
    "autoRefreshEnabled": True,
}
DIFFERENCE: Json = {
    "compareGroups": ["Parameters", "Model metrics"],
    "showChangeFromBaseline": False,
    "showDifferencesOnly": True,
    "baselineColumnUuid": "",
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
