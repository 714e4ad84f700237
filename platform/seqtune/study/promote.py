"""Another champion than the best on validation: the command ``seqtune promote``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from seqtune.data import Dataset, protocol_of, read
from seqtune.errors import UserError
from seqtune.metrics import Ranks
from seqtune.results import Finalist, TrialRow
from seqtune.significance import Comparison, compare
from seqtune.space.asked import ask_study
from seqtune.state import held_file, ranks_in
from seqtune.storage import Folder
from seqtune.study import final, record
from seqtune.study.afterwards import REPORT, amend, check_tested, held, keep_best
from seqtune.study.identity import asked_options, check_same, taken_over
from seqtune.study.plan import Plan
from seqtune.study.shelf import Known, find, whole
from seqtune.study.tracked import tracked
from seqtune.track import BY_HAND, Registered, store_uri
from seqtune.words import p_text, percent

RANKS = "ranks-promoted.parquet"


@dataclass(frozen=True)
class Promoted:
    """A trial that was made the champion."""

    finalist: Finalist
    sentence: str
    checkpoint: str
    registered: Registered | None  # None where MLflow has not taken it


def promote(
    name: str,
    storage: str,
    number: int,
    *,
    data: str | None = None,
    tracking_uri: str | None = None,
    say: Callable[[str], None] = print,
) -> Promoted:
    """Tests a trial of a study that does not run, and makes it the champion.

    Its checkpoint takes the place of the champion's, the alias in MLflow moves to it, and report,
    checkpoint and model say that it was chosen by hand, with the test of the best one known.

    Args:
        name: of the study.
        storage: the folder where it lies.
        number: of the trial.
        data: where the interactions are now; None: where they were.
        tracking_uri: of MLflow; None: the SQLite file in ``storage``.
        say: gets what a person should know.

    Raises:
        UserError: the study runs, has no report or no such trial, or the data are other ones.
    """
    known = find(name, storage)
    about, row = whole(known), _row(known, number)
    options = asked_options(about)
    if data is not None:
        options = replace(options, data=data)
    dataset = read(options)
    protocol = protocol_of(options, dataset, ask_study(options).seed)
    check_same(options, dataset, protocol, about, "--data")
    plan = Plan(options.model, options.metric, protocol, known.folder, study=about.id)
    uri = store_uri(tracking_uri, Folder.at(storage))
    with held(known), tracked(uri, name, about.id, known.folder, say) as tracker:
        keep_best(known)
        finalist = final.examine(
            plan.of(row.model),
            number,
            dict(row.params),
            dataset,
            [known.folder / "champion"],
            _epochs(known.folder, row),
            chosen="by hand, with the test of the study known",
        )
        before = _ranks(known.folder / "report", "ranks-best.parquet")
        against = compare(options.metric, finalist.test_ranks, before)
        sentence = _sentence(known, finalist, against)
        _report(known, finalist, against, sentence, dataset, plan)
        tracker.champion(known.folder / "champion", name, number, sentence, chosen=BY_HAND)
        tracker.upload(known.folder / "report", [*REPORT, RANKS], to="report")
        tracker.settle(60)
        tracker.close(timeout=60 if tracker.answers else 5)
        return Promoted(finalist, sentence, (known.folder / "champion").uri, tracker.registered)


def _row(known: Known, number: int) -> TrialRow:
    check_tested(known, "another trial could take the place of")
    if refreshed := taken_over(known.report):
        raise UserError(
            f"{known.name}: its champion was trained on newer data ({refreshed['data']}), which "
            "none of its trials knows"
        )
    row = next((one for one in known.trials if one.number == number), None)
    if row is None:
        raise UserError(f"--trial {number}: {known.name} has trials 0 to {len(known.trials) - 1}")
    if row.value is None or row.status == "failed":
        reason = f"it failed: {row.reason}" if row.reason else "it was never evaluated"
        raise UserError(f"--trial {number}: cannot be promoted, since {reason}")
    return row


def _epochs(folder: Folder, row: TrialRow) -> list[int]:
    """Returns the epochs that were evaluated, up to the best one."""
    stored = record.read(folder / "trials" / f"{row.number:04d}")
    told = stored.intermediate_values if stored else {}
    return [epoch for epoch in sorted(told) if epoch <= (row.epoch or 0)] or [row.epoch or 1]


def _ranks(folder: Folder, name: str) -> Ranks:
    content = folder.read(name)
    if content is None:
        raise UserError(f"{folder / name} is missing; seqtune tune --resume writes it again")
    return ranks_in(content)


def _sentence(known: Known, finalist: Finalist, against: Comparison) -> str:
    assert known.report is not None
    best, metric = known.report["best"], known.metric
    if finalist.number == best["number"]:
        return f"Trial {finalist.number} of {finalist.model}, the best, is the champion again."
    return (
        f"Trial {finalist.number} of {finalist.model} was promoted by hand: {metric} "
        f"{finalist.valid[metric]:.4f} on validation, where trial {best['number']}, the best, has "
        f"{best['valid'][metric]:.4f}; on test {against.difference:+.4f} "
        f"({percent(against.relative)}, {p_text(against.p_value)}). Whoever chooses with the test "
        "known has used it up: this test says less than that of the best on validation."
    )


def _report(
    known: Known,
    finalist: Finalist,
    against: Comparison,
    sentence: str,
    dataset: Dataset,
    plan: Plan,
) -> None:
    """Writes it into the report, in the place of what was promoted before."""
    folder = known.folder / "report"
    own: dict[str, Any] = {n: v for n, v in vars(finalist).items() if n != "test_ranks"}
    promoted = own | {"against_best": asdict(against), "sentence": sentence}
    amend(folder, {"promoted": promoted}, "Promoted by hand", [sentence])
    held = plan.protocol.split(dataset).test
    folder.write(RANKS, held_file(dataset, held, finalist.test_ranks))
