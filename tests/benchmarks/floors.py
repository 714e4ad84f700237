"""Floors that a trained model must beat: popularity and Markov chains, in the models' protocol.

    python tests/benchmarks/floors.py beauty.parquet

Leave-one-out, full ranking, as ``evaluate`` ranks. The decayed Markov chain counts which item
follows which at lags 1 to 5, lag k weighted decay^(k-1), normalises the rows, and adds them up for
the last five items of a history with the same weights. Each floor is counted twice: on what the
models train on, and on everything but the test items, as some published floors are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from seqtune import batches, metrics
from seqtune.data import Split, leave_one_out, load
from seqtune.evaluate import evaluate
from seqtune.model import History, Model
from seqtune.params import Params

LAGS = 5


class Floor(Model):
    """A function from histories to scores, as a model."""

    def __init__(self, split: Split, scores: Callable[[History], np.ndarray]) -> None:
        super().__init__(Params(max_seq_len=LAGS), split.dataset.n_items, 1)
        self.scores = scores

    def score(self, history: History) -> Tensor:
        return torch.from_numpy(self.scores(history)).float()


def transitions(split: Split, ends: np.ndarray, decay: float, lags: int) -> sparse.csr_matrix:
    """Counts successors among the events of each user before ``ends`` (U,): rows add up to 1."""
    data = split.dataset
    users = np.repeat(np.arange(data.n_users), np.diff(data.offsets))
    counted = np.arange(data.n_interactions) < ends[users]
    shape = (data.n_items + 1,) * 2
    counts = sparse.csr_matrix(shape)
    for lag in range(1, lags + 1):
        pair = counted[lag:] & (users[lag:] == users[:-lag])
        weights = np.full(pair.sum(), decay ** (lag - 1))
        cells = (data.items[:-lag][pair], data.items[lag:][pair])
        counts += sparse.csr_matrix((weights, cells), shape)
    return sparse.diags(1 / np.maximum(np.asarray(counts.sum(1)).ravel(), 1e-9)) @ counts


def chain(split: Split, ends: np.ndarray, decay: float, lags: int) -> Callable[..., np.ndarray]:
    """Scores by a chain over the last ``lags`` items; popularity breaks ties."""
    matrix, popular = transitions(split, ends, decay, lags), popularity(split, ends)

    def scores(history: History) -> np.ndarray:
        items, lengths = history.items.numpy(), history.lengths.numpy()
        age = lengths[:, None] - 1 - np.arange(items.shape[1])  # 0 is the newest item
        used = (age >= 0) & (age < lags)
        rows = np.broadcast_to(np.arange(len(items))[:, None], items.shape)[used]
        query = sparse.csr_matrix(
            (decay ** age[used], (rows, items[used])), (len(items), matrix.shape[0])
        )
        return (query @ matrix).toarray() + 1e-9 * popular

    return scores


def popularity(split: Split, ends: np.ndarray) -> np.ndarray:
    """Counts the events before ``ends`` of each item: (I + 1,)."""
    data = split.dataset
    users = np.repeat(np.arange(data.n_users), np.diff(data.offsets))
    counted = np.arange(data.n_interactions) < ends[users]
    return np.bincount(data.items[counted], minlength=data.n_items + 1)


def main(source: str) -> None:
    """Prints the floors of a data set."""
    split = leave_one_out(load(source))
    sequences = batches.sequences(split, torch.device("cpu"))
    before_test = split.train_end.copy()
    before_test[split.test.users] = split.test.events
    for label, ends in (("training events", split.train_end), ("all but the test", before_test)):
        popular = popularity(split, ends).astype(float)
        floors = {
            "popularity": lambda h, p=popular: np.tile(p, (len(h.items), 1)),
            "Markov": chain(split, ends, 1.0, 1),
            "decayed Markov, .5": chain(split, ends, 0.5, LAGS),
            "decayed Markov, .7": chain(split, ends, 0.7, LAGS),
        }
        for name, scores in floors.items():
            ranking = evaluate(
                Floor(split, scores),
                sequences,
                split,
                split.test,
                mask_seen=not split.dataset.has_repeats,
            )
            found = metrics.compute(ranking.ranks)
            print(
                f"{label:18} {name:20} hr@10 {found['hr@10']:.4f}  ndcg@10 {found['ndcg@10']:.4f}"
            )


if __name__ == "__main__":
    main(sys.argv[1])
