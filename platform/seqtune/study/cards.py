"""How many trials share a GPU: by what one takes of its memory, and by what the card has."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from seqtune.cluster import Joined
from seqtune.data import Dataset
from seqtune.machines import Card, cards
from seqtune.memory import check_fits, need, size
from seqtune.space.asked import AskedStudy
from seqtune.study.deaths import last_line
from seqtune.study.plan import Plan, trial_params

OUT = "CUDA out of memory"  # as torch says it
MOST = 8  # trials on a card: with more, none measured gets more done (docs/performance.md)
CONTEXT = 0.6e9  # bytes that each process takes for CUDA itself
AMPERE = 8.0  # the generation of cards that first had tf32 and bf16
FULL = 0.9  # of the card's memory


class Sharing:
    """What each trial gets of a card; it changes once the first trial has shown what it takes."""

    def __init__(self, card: Card, taken: float, cpus: float, most: int) -> None:
        self.card, self._cpus, self._most = card, cpus, max(1, min(most, MOST, int(cpus)))
        self.trials = self._fit(taken)
        self._seen = False

    @property
    def share(self) -> dict[str, float]:
        """The CPUs and the GPU of the next trial."""
        gpu = math.floor(10_000 / self.trials) / 10_000  # Ray counts so finely
        return {"CPU": max(1.0, float(int(self._cpus / self.trials))), "GPU": gpu}

    def seen(self, taken: float) -> str:
        """Is told the bytes that the first trial took; returns a line where that changes it."""
        if self._seen:
            return ""
        self._seen, before = True, self.trials
        self.trials = self._fit(taken)
        if self.trials == before:
            return ""
        return f"the first trial took {size(taken)} of its GPU: {self.of_a_card()} from now on"

    def fewer(self) -> str:
        """Halves the trials on a card, since one of them found no memory; returns a line."""
        self._seen, self.trials = True, max(1, self.trials // 2)
        return f"{self.of_a_card()} from now on"

    def of_a_card(self) -> str:
        """Says how many trials share a card."""
        return f"{self.trials} trials share a GPU" if self.trials > 1 else "a trial has a GPU"

    def _fit(self, taken: float) -> int:
        return max(1, min(self._most, int(FULL * self.card.memory / (taken + CONTEXT))))


def share_cards(
    asked: AskedStudy, plan: Plan, joined: Joined, dataset: Dataset, note: Callable[[str], None]
) -> Sharing | None:
    """Decides how many trials share a card; None where the user says it, or nothing is known."""
    options = asked.options
    said = options.gpus_per_trial is not None or options.cpus_per_trial is not None
    if plan.gpus != 1 or plan.together or said:
        return None
    found = cards()
    if not found:
        return None
    card = min(found, key=lambda one: one.memory)
    built = {one.model: trial_params(one.model, one.defaults()) for one in asked.spaces}
    for model, params in built.items():
        check_fits(model, params, dataset, card.memory, f"a GPU ({card.name})")
    try:
        needs = [need(model, one, dataset, plan.protocol, "cuda") for model, one in built.items()]
        needed = max(needs, key=lambda one: one.total)
    except Exception as error:
        note(f"not known how much of a GPU a trial takes, so each has one: {last_line(error)}")
        return None
    n_gpus = sum(one.gpus for one in joined.machines) or 1
    most = options.concurrency or options.most
    sharing = Sharing(card, needed.total, plan.cpus, math.ceil(most / n_gpus))
    note(f"{card.name}, {size(card.memory)}: a trial takes about {needed}; {sharing.of_a_card()}")
    precisions = {getattr(one, "precision", "") for one in built.values()}
    if card.generation >= AMPERE and "fp32" in precisions:
        note("trials compute in fp32; this card also has tf32 and bf16: --set precision=tf32")
    if sharing.trials > 1 and not card.mps:
        note(
            "they take turns on it; with NVIDIA's MPS (nvidia-cuda-mps-control -d) they would run "
            "at once"
        )
    return sharing


def with_share(plan: Plan, sharing: Sharing | None, limit: int | None) -> Plan:
    """Returns the plan by which trials share cards; ``limit`` is ``--concurrency``."""
    if sharing is None:
        return plan
    share = sharing.share
    n = int(plan.concurrency * sharing.trials)
    return replace(
        plan,
        cpus=share["CPU"],
        gpus=share["GPU"],
        concurrency=min(n, limit or n),
    )
