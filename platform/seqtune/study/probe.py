"""How many trials at a time, with how many threads each: measured when a study begins.

Which way to share the CPUs gets most done depends on the model, the data and the machine: small
matrices leave threads idle, large ones want the whole cache. So the real training loop runs for two
seconds in each way, with the model's defaults: as many trials at a time as there are CPUs, half as
many with two threads each, and so on while it does not get worse.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

from seqtune.data import Dataset
from seqtune.meter import Meter, TimeIsUp
from seqtune.study.loop import fresh_start
from seqtune.study.plan import Plan, trial_params

SECONDS = 2.0  # of measuring in each way
IN_ALL = 10.0  # seconds, the most that measuring takes once its processes are there
LONGEST = 5.0  # seconds of one measurement, where a step takes longer than SECONDS
WARM_UP = 2  # steps: the first ones import, allocate, and fill caches
NOISE = 0.05  # what repeated measurements differ by
READY = 30.0  # seconds, the longest wait for processes or for one measurement
LEADS = (0.3, 1.5, 6.0)  # seconds until all start together: first, and where that was too soon
# With its processes a probe takes some ten seconds. It shall be a few percent of a study at most:
SHORT_STUDY = 300.0  # seconds of --time-budget
FEW_EVENTS = 20_000_000  # trained, at ten epochs a trial: SASRec takes minutes for as many

Way = tuple[int, int]  # trials at a time, CPUs each


class CannotMeasureError(Exception):
    """Measuring would have said nothing."""


class LateError(CannotMeasureError):
    """A process was not ready when all were to start together."""


@dataclass(frozen=True)
class Share:
    """How trials share the CPUs, and the words for why."""

    concurrency: int
    cpus: int
    why: str


def ways(nodes: list[int], trials: int) -> list[Way]:
    """Returns the ways to share all CPUs of the machines, most trials at a time first.

    A trial is on one machine, so it gets at most the CPUs of the smallest.
    """
    shares = [(sum(n // t for n in nodes), t) for t in range(1, min(nodes, default=0) + 1)]
    return [(c, t) for c, t in shares if c * t == sum(nodes) and c <= trials]


def pays(events: int, epochs: int, trials: int, time_budget: float | None) -> bool:
    """Says whether a study is so long that a probe is a small part of it.

    Early stopping may end a trial after ten epochs.
    """
    long = time_budget is None or time_budget >= SHORT_STUDY
    return long and events * min(epochs, 10) * trials >= FEW_EVENTS


def best(rates: Mapping[Way, float]) -> Share:
    """Returns the way with most targets/s in all; of equals, the one with more trials at a time."""
    top = max(rates.values())
    won = max(way for way, rate in rates.items() if rate >= (1 - NOISE) * top)
    others = [
        f"; {c} x {t} CPU{'s' * (t > 1)}: {rate:,.0f}"
        for (c, t), rate in rates.items()
        if (c, t) != won
    ]
    return Share(*won, f"measured: {rates[won]:,.0f} targets/s{''.join(others)}")


def choose(plan: Plan, values: dict[str, Any], data: Any, possible: list[Way]) -> Share:
    """Measures the ways in their order, until one is clearly worse than the best before it.

    ``data`` is a reference to the dataset. Raises whatever keeps the loop from training.
    """
    _together(_get_ready, *possible[0])
    began = time.monotonic()
    rates: dict[Way, float] = {}
    for n, way in enumerate(possible):
        if n and (time.monotonic() - began) * (n + 1) / n > IN_ALL:  # one more like these
            break
        rates[way] = sum(_measured_together(way, plan, values, data))
        if rates[way] < (1 - NOISE) * max(rates.values()):
            break
    return best(rates)


def _measured_together(way: Way, plan: Plan, values: dict[str, Any], data: Any) -> list[float]:
    """Measures in all processes of a way at a time; on a busy machine they meet later."""
    for lead in LEADS[:-1]:
        with suppress(LateError):
            return _together(measure, *way, plan, values, [data], way[1], time.time() + lead)
    return _together(measure, *way, plan, values, [data], way[1], time.time() + LEADS[-1])


def _together(work: Callable[..., Any], n: int, cpus: int, *words: Any) -> list[Any]:
    """Runs ``work`` in ``n`` processes at a time."""
    job = ray.remote(num_cpus=cpus, max_retries=0)(work)
    jobs = [job.remote(*words) for _ in range(n)]
    try:
        found: list[Any] = ray.get(jobs, timeout=READY)
        return found
    except BaseException as error:
        left = jobs
        if isinstance(error, Exception):  # to cancel what is about to end can crash Ray 2.60
            left = ray.wait(jobs, num_returns=n, timeout=LONGEST)[1]
        for one in left:
            ray.cancel(one, force=True)
        raise


def _get_ready() -> None:

    time.sleep(LEADS[0])  # so that no process serves two of these


def measure(plan: Plan, values: dict[str, Any], data: list[Any], cpus: int, start: float) -> float:
    """Runs the training loop from the time ``start`` on; returns the targets/s of this process."""
    from seqtune.state import Home
    from seqtune.train import train

    fresh_start(cpus)
    dataset: Dataset = ray.get(data)[0]
    split, params = plan.protocol.split(dataset), trial_params(plan.model, values)
    if time.time() > start + SECONDS / 4:
        raise LateError("the processes did not start together")
    time.sleep(max(0, start - time.time()))
    meter = Meter(seconds=SECONDS, warm_up=WARM_UP, longest=LONGEST)
    home = Home(stepped=meter)
    with suppress(TimeIsUp):
        train(
            plan.model, params, split, home, metric=plan.metric, mask_seen=plan.protocol.mask_seen
        )
    return rate(meter)


def rate(meter: Meter) -> float:
    """Returns targets per second."""
    if not meter.targets:
        raise CannotMeasureError("a step takes too long, or there are too few")
    return meter.targets / meter.elapsed
