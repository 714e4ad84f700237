"""STAN compared with the equations, one user and one neighbour after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from seqtune.data import Split
from seqtune.model import History, Sequences
from seqtune.models import stan
from seqtune.models.stan import STAN
from seqtune.params import build

DAY = 86_400_000.0
LENGTH = 6
CHOICES: list[dict[str, object]] = [
    {},
    {"lambda_1": 1.5, "lambda_2": 100, "lambda_3": 0.7},
    {"lambda_1": 0.1, "lambda_3": 0.1},
    {"lambda_1": math.inf, "lambda_2": math.inf, "lambda_3": math.inf},
    {"k": 2},
    {"sample_size": 3},
    {"sample_size": 4, "k": 2, "lambda_2": 300},
    {"causal_neighbors": False},
    {"causal_neighbors": False, "sample_size": 4, "k": 3},
    {"max_seq_len": 3},
]


def by_hand(
    p: STAN.Params, split: Split, user: int, history: list[int], until: float
) -> dict[int, float]:
    """The score of each item that a neighbour has, as the equations say."""
    data = split.dataset
    sessions = []
    for other, (first, end) in enumerate(zip(data.offsets, split.train_end, strict=False)):
        first = max(first, end - p.max_seq_len)
        sessions.append((other, data.items[first:end].tolist(), int(data.times[end - 1])))
    average = sum(len(set(n)) for _, n, _ in sessions) / len(sessions)
    lambda_1 = average / 2 if p.lambda_1 is None else p.lambda_1
    lambda_3 = average / 2 if p.lambda_3 is None else p.lambda_3

    def position(item: int, session: list[int]) -> int:  # from 1, the last occurrence
        return len(session) - session[::-1].index(item)

    candidates = [
        (time, n)
        for other, n, time in sessions
        if other != user and set(n) & set(history) and (time < until or not p.causal_neighbors)
    ]
    candidates = sorted(candidates, key=lambda one: -one[0])[: p.sample_size]
    similar = []
    for time, n in candidates:
        shared = set(n) & set(history)
        sim = sum(math.exp((position(i, history) - len(history)) / lambda_1) for i in shared)
        sim /= math.sqrt(len(set(history)) * len(set(n)))
        similar.append((sim * math.exp(-abs(until - time) / DAY / p.lambda_2), n))
    scores: dict[int, float] = {}
    for w, n in sorted(similar, key=lambda one: -one[0])[: p.k]:
        star = max(set(n) & set(history), key=lambda i: position(i, history))
        for item in set(n):
            away = abs(position(item, n) - position(star, n))
            scores[item] = scores.get(item, 0.0) + w * math.exp(-away / lambda_3)
    largest = max((w for w, _ in similar), default=1.0)
    return {item: score / largest for item, score in scores.items()}


def prefixes(data: Sequences, p: STAN.Params) -> Iterator[tuple[int, History]]:
    """The history before every event but a user's first, held-out ones among them."""
    for event in range(len(data.items)):
        if event > data.first[event]:
            length = min(event - int(data.first[event]), p.max_seq_len)
            yield event, data.before(torch.tensor([event]), length)


def model_for(data: Sequences, **values: object) -> STAN:
    p = build(STAN.Params, {"max_seq_len": LENGTH} | values, "test")
    model = STAN(p, data.n_items, data.n_users)
    model.prepare(data)
    return model.eval()


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_scores_are_those_of_the_equations(
    split: Split, data: Sequences, choice: dict[str, object]
) -> None:
    model = model_for(data, **choice)
    popularity = data.counts()
    reached = 0
    for _, history in prefixes(data, model.params):
        items = history.items[0].tolist()
        found = model.score(history)[0]
        wanted = by_hand(model.params, split, int(history.users), items, int(history.times[0, -1]))
        for item in range(1, data.n_items + 1):
            if wanted.get(item, 0.0) > 1e-37:
                assert float(found[item]) == pytest.approx(wanted[item], rel=1e-5)
                reached += 1
            else:
                share = int(popularity[item]) / (int(popularity.max()) + 1)
                assert float(found[item]) == pytest.approx(share - 1, rel=1e-5)
    assert reached > 100


def test_a_stranger_has_no_session_to_leave_out(split: Split, data: Sequences) -> None:
    model = model_for(data)
    for _, history in prefixes(data, model.params):
        stranger = replace(history, users=torch.tensor([data.n_users + 3]))
        items, until = history.items[0].tolist(), int(history.times[0, -1])
        wanted = by_hand(model.params, split, -1, items, until)
        found = model.score(stranger)[0]
        for item, score in wanted.items():
            assert float(found[item]) == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_batches_and_padding_change_nothing(
    data: Sequences, choice: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_for(data, **choice)
    events, alone = zip(*prefixes(data, model.params), strict=True)
    scores = torch.cat([model.score(history) for history in alone])  # without padding
    together = data.before(torch.tensor(events), 2 * LENGTH)  # wider than any history
    lengths = together.lengths.clamp(max=model.params.max_seq_len)
    columns = torch.arange(2 * LENGTH) + (together.lengths - lengths)[:, None]
    real = torch.arange(2 * LENGTH) < lengths[:, None]
    columns = columns.clamp(max=2 * LENGTH - 1)
    together = History(
        together.users,
        together.items.gather(1, columns) * real,
        lengths,
        together.times.gather(1, columns) * real,
    )
    torch.testing.assert_close(model.score(together), scores, rtol=1e-6, atol=1e-7)
    monkeypatch.setattr(stan, "CELLS", 400)  # some rows at a time, then one
    torch.testing.assert_close(model.score(together), scores, rtol=1e-6, atol=1e-7)
    monkeypatch.setattr(stan, "CELLS", 1)
    torch.testing.assert_close(model.score(together), scores, rtol=1e-6, atol=1e-7)
