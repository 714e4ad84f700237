"""Checks of options that need no heavy import."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from seqtune.catalogue import check_model, check_models, declaration, model_names
from seqtune.cluster import check_lasting, in_job
from seqtune.data import locate
from seqtune.data.files import find_all
from seqtune.data.kinds import GIVEN, LEAVE_ONE_OUT, parse_split
from seqtune.errors import UserError
from seqtune.options import (
    GENERATIONS,
    RESULTS,
    JudgedOptions,
    ModelOptions,
    StudyOptions,
    TrainOptions,
    declared,
    parse_goal,
)
from seqtune.secrecy import without_keys
from seqtune.storage import check_place

LONGEST_NAME = 100

Options = TypeVar("Options", bound=ModelOptions)


def ready(options: Options) -> Options:
    """Checks what can be checked in a moment; the model's name comes back in lower case.

    Raises:
        UserError: no model, or one that there is not; no such data; a metric, a name or a place
            that cannot be.
    """
    check_numbers(options)
    several = isinstance(options, StudyOptions)
    options = replace(options, model=_named(options.model, several=several))
    options = _with_parts(options)
    locate(options.data)
    if isinstance(options, JudgedOptions):
        from seqtune.metrics import parse_metric

        parse_metric(options.metric)
        _check_split(options)
        options = replace(options, storage=_keyless(options.storage))
        check_place("--storage", options.storage)
        options = replace(options, storage=lasting(options.storage))
    if isinstance(options, StudyOptions | TrainOptions):
        check_lasting("--tracking-uri", options.tracking_uri)
    if isinstance(options, TrainOptions):
        check_place("--storage" if options.out is None else "--out", options.folder)
        check_lasting("--out", options.folder)
    if isinstance(options, StudyOptions):
        check_lasting("--storage", options.storage)
        check_name("--name", options.study if options.name is None else options.name)
        _check_goal(options)
        _check_judge(options)
        if options.most < len(options.models):
            raise UserError(
                f"--trials {options.most}: {len(options.models)} models need as many trials or "
                "more, since the defaults of each run first"
            )
    return options


def _with_parts(options: Options) -> Options:
    """Takes the file of --train for that of --data; those of --valid and --test come with it."""
    usual = ModelOptions.__dataclass_fields__["data"].default
    if options.train is not None:
        if options.data not in (usual, options.train):
            raise UserError(f"--train {options.train}: --data names another file; keep one of them")
        options = replace(options, data=options.train, train=None)
    if (options.valid is None) != (options.test is None):
        given, missing = ("--valid", "--test") if options.valid else ("--test", "--valid")
        raise UserError(f"{given}: {missing} names the events that are held out as well; give both")
    for option, name in (("--valid", options.valid), ("--test", options.test)):
        if name is not None:
            find_all(name, option)
    return options


def _check_split(options: JudgedOptions) -> None:
    """Raises where there is no such split, or an option is for another."""
    kind = parse_split(options.split or LEAVE_ONE_OUT).name
    if options.validation != "time" and kind != "time":
        raise UserError(f"--validation {options.validation}: is for --split time")
    if options.targets and kind == LEAVE_ONE_OUT and not options.split_col:
        raise UserError(
            f"--targets {options.targets}: by leave-one-out there is one target; is for other "
            "--split"
        )
    if options.split_col and options.split not in (None, GIVEN):
        raise UserError(f"--split {options.split}: --split-col says it already; keep one of them")


def _check_goal(options: StudyOptions) -> None:
    """Raises where the goal is of another metric than the study maximises."""
    if options.goal is not None and (metric := parse_goal(options.goal)[0]) != options.metric:
        raise UserError(
            f"--goal {options.goal}: the study maximises {options.metric}, not {metric}; give the "
            f"goal in that, or add --metric {metric}"
        )


def _check_judge(options: StudyOptions) -> None:
    """Raises where an objective, a limit or a preference is none."""
    from seqtune.limits import Judge
    from seqtune.metrics import check_measure, direction

    for name in options.also:
        if direction(check_measure(name, "--metric")) == "neither":
            raise UserError(f"--metric {name}: neither more nor less of it is better")
    if twice := [one for one in options.objectives if options.objectives.count(one) > 1]:
        raise UserError(f"--metric {twice[0]}: is given twice")
    Judge.asked(options)
    if options.seeds > 1 and options.workers_per_trial != 1:
        raise UserError(
            f"--seeds {options.seeds}: trains in one process each; leave --workers-per-trial out"
        )
    _check_population(options)
    if options.seeds > 1 and options.also:
        raise UserError(f"--seeds {options.seeds}: races by one measure; give one --metric alone")


def _check_population(options: StudyOptions) -> None:
    """Raises where trials cannot be generations of a population, of which weights are taken on."""
    if not options.evolves:
        return
    place = "--scheduler pbt"
    if len(options.models) > 1 or not declaration(options.models[0]).is_trained:
        raise UserError(f"{place}: takes over weights; give one --model alone, that is trained")
    if options.also or options.seeds > 1 or options.refit:
        option = f"--refit {options.refit}" if options.refit else f"--seeds {options.seeds}"
        option = "a second --metric" if options.also else option
        raise UserError(
            f"{place}: trials go on from one another's weights, by one measure and "
            f"with one seed; leave {option} out"
        )
    if options.most < 2 * GENERATIONS:
        raise UserError(
            f"--trials {options.most}: a population needs {2 * GENERATIONS} trials or more, in "
            f"{GENERATIONS} generations"
        )


def check_numbers(options: Any) -> None:
    """Raises where a number is larger than anybody means, or none at all."""
    for one in declared(type(options)):
        value = getattr(options, one.name)
        if isinstance(value, int | float) and not abs(value) <= one.flag.most:
            most = f"{one.flag.most:,.0f}"
            raise UserError(f"{one.names[0]} {value:.6g}: must be a number of at most {most}")


def check_name(place: str, name: str) -> None:
    """Raises where a study cannot have that name."""
    if not re.fullmatch(r"[\w][\w.-]*", name) or len(name) > LONGEST_NAME:
        raise UserError(
            f"{place} {name}: use letters, digits, '.', '_' and '-' only, {LONGEST_NAME} at most"
        )


def _keyless(storage: str) -> str:
    """Moves the keys of ``s3://KEY:SECRET@BUCKET`` to where every S3 client looks for them.

    Raises:
        UserError: other ones are there already.
    """
    place, keys = without_keys(storage)
    for name, value in keys.items():
        if os.environ.setdefault(name, value) != value:
            raise UserError(f"--storage {place}: has other keys than {name}; keep one of them")
    return place


def lasting(storage: str) -> str:
    """Moves the default out of the temporary folder of a Ray job, into the home folder."""
    return str(Path.home() / RESULTS) if storage == RESULTS and in_job() else storage


def _named(model: str | None, *, several: bool) -> str:
    if model is None:
        names = model_names()
        raise UserError(
            f"--model: name the model, for example --model {names[0]}; "
            f"there are: {', '.join(names)}"
        )
    return ",".join(check_models(model)) if several else check_model(model)
