"""What the thread does with the store, one operation at a time."""

from __future__ import annotations

import contextlib
import getpass
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqtune.storage import Folder, make_whole
from seqtune.track.champion import METRIC, UNTESTED, Registered, register
from seqtune.track.experiment import STUDY, find_experiment, runs
from seqtune.track.logged import log_model
from seqtune.track.pages import DIMENSIONS, NOTE, PARENT, STATUS, Links, described
from seqtune.track.store import quiet
from seqtune.track.undocumented import make_store, save_view, view

Op = dict[str, Any]

TRIAL, REASON = "seqtune.trial", "seqtune.reason"
CHAMPION = "seqtune.champion"
# Any other end is FINISHED; a resumed study goes on with what is KILLED.
ENDED = {"failed": "FAILED", "interrupted": "KILLED", "unfinished": "KILLED"}


@dataclass
class Trial:
    """What is known of a trial's run."""

    run_id: str
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    status: str = "RUNNING"
    last_step: int | None = -1  # highest step written; None: not looked up yet


class Writer:
    """Carries out operations on the store; every one may be repeated."""

    def __init__(self, uri: str, experiment: str, study: str) -> None:
        quiet()
        from mlflow import MlflowClient

        self.uri, self.study = uri, study
        if uri.startswith("sqlite:///"):  # a driver that is killed leaves no half of a database
            make_whole(Path(uri.removeprefix("sqlite:///")), make_store)
        self.client = MlflowClient(uri, registry_uri=uri)
        self.experiment_id = find_experiment(self.client, uri, experiment, study)
        self.trials: dict[int, Trial] = {}
        self.name = experiment
        self.run_id: str | None = None  # of the study
        self.own: Trial | None = None  # the same, where it has curves
        self.metric, self.dimensions, self.params = "", list[str](), dict[str, str]()
        self.tags: dict[str, str] = {}  # of the study, which every trial gets too
        self.losses: set[str] = set()  # names of the curves beside the metric
        self.view: Op = {}  # as it was last written
        self.registered: Registered | None = None
        for run in runs(self.client, self.experiment_id, f"tags.`{STUDY}` = '{study}'"):
            tags, data = run.data.tags, run.data
            if TRIAL in tags:
                self.trials[int(tags[TRIAL])] = Trial(
                    run.info.run_id, data.params, data.metrics, run.info.status, None
                )
                self.losses |= _losses(data.metrics)
            else:
                self.run_id = run.info.run_id
                self.params = data.params
                self.metric = tags.get(METRIC, "")
                self.dimensions = json.loads(tags.get(DIMENSIONS, "[]"))
                own = {STUDY, STATUS, METRIC, DIMENSIONS, CHAMPION}
                self.tags = {
                    n: v for n, v in tags.items() if n.startswith("seqtune.") and n not in own
                }

    @property
    def links(self) -> Links | None:
        """Where the study is; None before it has a run."""
        if self.run_id is None:
            return None
        return Links(self.uri, self.experiment_id, self.run_id)

    def apply(self, op: Op) -> None:
        """Carries out one operation."""
        match op["do"]:
            case "study":
                self._start_study(op)
            case "trial":
                self._start_trial(op["number"], op["params"], op["tags"])
            case "results":
                self._log_results(op["results"])
            case "trial_end":
                self._end_trial(op)
            case "upload":
                self._upload(op)
            case "finalist":
                self._finalist(op)
            case "champion":
                self._champion(op)
            case "study_end":
                self._end_study(op)

    def _log(
        self,
        run_id: str,
        metrics: Iterable[tuple[str, float, int, int]] = (),  # name, value, milliseconds, step
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        points = [Metric(*point) for point in metrics]
        pairs = [Param(name, str(value)) for name, value in (params or {}).items()]
        marks = [RunTag(name, str(value)) for name, value in (tags or {}).items()]
        # One request takes up to 1,000 metrics, 100 parameters and 100 tags.
        for k in range(max(-(-len(points) // 900), -(-len(pairs) // 90), -(-len(marks) // 90), 0)):
            self.client.log_batch(
                run_id,
                metrics=points[900 * k : 900 * (k + 1)],
                params=pairs[90 * k : 90 * (k + 1)],
                tags=marks[90 * k : 90 * (k + 1)],
            )

    def _new_run(self, name: str, tags: Mapping[str, str]) -> str:
        marks = {"mlflow.runName": name, STUDY: self.study, "mlflow.source.name": "seqtune", **tags}
        with contextlib.suppress(KeyError, OSError):  # a container may have no user name
            marks["mlflow.user"] = getpass.getuser()
        if "seqtune.git_commit" in marks:
            marks["mlflow.source.git.commit"] = marks["seqtune.git_commit"]
        run_id: str = self.client.create_run(self.experiment_id, tags=marks).info.run_id
        return run_id

    def _start_study(self, op: Op) -> None:
        self.metric, self.dimensions = op["metric"], op["dimensions"]
        self.tags = op["tags"]
        tags = self.tags | {
            STATUS: "running",
            METRIC: self.metric,
            DIMENSIONS: json.dumps(self.dimensions),
        }
        if self.run_id is None:
            self.run_id = self._new_run(self.name, tags)
            tags[NOTE] = self._note()
        else:
            self.client.update_run(self.run_id, status="RUNNING")
        missing = {n: v for n, v in op["params"].items() if n not in self.params}
        self._log(self.run_id, params=missing, tags=tags)
        self.params |= {name: str(value) for name, value in missing.items()}
        self._write_view()

    def _study_run(self) -> str:
        if self.run_id is None:  # the store lost it, or a record of it was refused
            self.run_id = self._new_run(self.name, {})
        return self.run_id

    def _own(self) -> Trial:
        """Returns the run of the study itself, which has the curves of a training alone."""
        if self.own is None or self.own.run_id != self._study_run():
            self.own = Trial(self._study_run(), last_step=None)
        return self.own

    def _trial(self, number: int, own: Mapping[str, str] | None = None) -> Trial:
        if number not in self.trials:
            parent = self._study_run()
            tags = self.tags | {
                TRIAL: str(number),
                STATUS: "running",
                PARENT: parent,
                **(own or {}),
            }
            self.trials[number] = Trial(self._new_run(f"trial {number:03d}", tags))
        return self.trials[number]

    def _start_trial(self, number: int, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        trial = self._trial(number, tags)
        missing = {name: value for name, value in params.items() if name not in trial.params}
        self._log(trial.run_id, params=missing)
        trial.params |= {name: str(value) for name, value in missing.items()}
        if trial.status == "KILLED":  # interrupted, and now it goes on
            self._reopen(trial)

    def _reopen(self, trial: Trial) -> None:
        if trial.status != "RUNNING":
            self.client.update_run(trial.run_id, status="RUNNING")
            self._log(trial.run_id, tags={STATUS: "running"})
            trial.status = "RUNNING"

    def _log_results(self, results: list[Op]) -> None:
        points: dict[int | None, list[tuple[str, float, int, int]]] = {}
        of: dict[int | None, Trial] = {}
        for op in results:
            number, step, metrics = op["number"], op["step"], op["metrics"]
            trial = of[number] = self._own() if number is None else self._trial(number)
            if trial.last_step is None:
                trial.last_step = self._last_step(trial.run_id, metrics)
            if step <= trial.last_step:
                continue  # a resumed study reports its past again
            trial.last_step = step
            self.losses |= _losses(metrics)
            found = points.setdefault(number, [])
            found += [(name, value, op["at"], step) for name, value in metrics.items()]
            best = f"best/{self.metric}"
            value = metrics.get(self.metric)
            if value is not None and value > trial.metrics.get(best, float("-inf")):
                trial.metrics[best] = value
                found.append((best, value, op["at"], step))
        for number, new in points.items():
            self._reopen(of[number])
            self._log(of[number].run_id, new)

    def _last_step(self, run_id: str, metrics: Mapping[str, float]) -> int:
        for name in metrics:
            history = self.client.get_metric_history(run_id, name)
            if history:
                return max(point.step for point in history)
        return -1

    def _end_trial(self, op: Op) -> None:
        trial = self._trial(op["number"])
        ended = ENDED.get(op["status"], "FINISHED")
        new = {n: v for n, v in op["best"].items() if trial.metrics.get(n) != v}
        if trial.status == ended and not new:
            return  # told before
        step = max(0, trial.last_step or 0)
        self._log(
            trial.run_id,
            [(name, value, op["at"], step) for name, value in new.items()],
            tags={STATUS: op["status"]} | ({REASON: op["reason"]} if op["reason"] else {}),
        )
        trial.metrics |= new
        self.client.set_terminated(trial.run_id, ended, op["at"])
        trial.status = ended
        self._write_view()  # it may know of more curves now, or of fewer axes

    def _upload(self, op: Op) -> None:
        number = op["number"]
        run_id = self._study_run() if number is None else self._trial(number).run_id
        folder = Folder.at(op["folder"])
        for name in folder.names() if op["names"] is None else op["names"]:
            content = folder.read(name)
            if content is None:
                raise FileNotFoundError(f"{folder / name}")
            with tempfile.TemporaryDirectory() as scratch:
                (Path(scratch) / name).write_bytes(content)
                self.client.log_artifact(run_id, f"{scratch}/{name}", op["to"] or None)

    def _end_study(self, op: Op) -> None:
        run_id = self._study_run()
        for trial in self.trials.values():
            if trial.status == "RUNNING":
                self._log(trial.run_id, tags={STATUS: "interrupted"})
                self.client.set_terminated(trial.run_id, "KILLED", op["at"])
                trial.status = "KILLED"
        points = [(name, value, op["at"], 0) for name, value in op["metrics"].items()]
        note = {NOTE: self._note(op["verdict"])} if op["verdict"] else {}
        self._log(run_id, points, tags=note | {STATUS: op["status"]})
        self._write_view()
        self.client.set_terminated(run_id, ENDED.get(op["status"], "FINISHED"), op["at"])

    def _run(self, number: int | None) -> Any:
        return self.client.get_run(
            self._study_run() if number is None else self._trial(number).run_id
        )

    def _finalist(self, op: Op) -> None:
        run = self._run(op["number"])
        tags = {n: value for n, value in run.data.tags.items() if n.startswith("seqtune.")}
        log_model(self.client, Folder.at(op["folder"]), run, tags, op["metrics"])

    def _champion(self, op: Op) -> None:
        run = self._run(op["number"])
        folder, name = Folder.at(op["folder"]), op["name"]
        made = register(
            self.client, folder, name, run, self.metric, op["verdict"], chosen=op["chosen"]
        )
        if op["chosen"] == UNTESTED:
            return
        self.registered = made
        name, version = self.registered.name, self.registered.version
        self._log(self._study_run(), tags={CHAMPION: f"models:/{name}/{version}"})

    def _note(self, *more: str) -> str:
        links = [self.links.note] if self.links else []
        return described(self.tags, *more, *links)

    def _write_view(self) -> None:
        run_id = self._study_run()
        if not self.trials and not self.dimensions:
            return  # a training by itself: its run has all there is to see
        trials = [trial.params for trial in self.trials.values()]
        # An axis that a trial has no value on would hide that trial.
        axes = [name for name in self.dimensions if all(name in params for params in trials)]
        state = view(run_id, self.metric, self.dimensions, axes, sorted(self.losses))
        if state == self.view or self.links is None:
            return
        title = f"Trials of {self.name}"
        save_view(self.client, self.experiment_id, self.links.view_key, title, state)
        self.client.set_experiment_tag(self.experiment_id, NOTE, self.links.note)
        self.view = state


def _losses(metrics: Iterable[str]) -> set[str]:
    return {m for m in metrics if m.startswith("train_") and not m.endswith("_seconds")}
