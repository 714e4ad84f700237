"""seqtune after whole epochs: validation and test metrics.

Training is evaluated after its first and its last epoch, and the better weights count, which are
those of the last unless it has overfitted: ``epoch`` says which. ``seqtune bench`` measures speed.
"""

from __future__ import annotations

import argparse
from typing import Any

import shared

from seqtune import metrics
from seqtune.data import Protocol, load
from seqtune.params import build, parse_assignment
from seqtune.storage import Folder
from seqtune.study.final import evaluate_on_test
from seqtune.study.plan import Plan
from seqtune.train import train


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Trains for whole epochs, evaluates and tests."""
    import torch

    from seqtune.model import model_class

    assert asked.epochs, "--epochs says for how long; seqtune bench measures speed"
    torch.set_num_threads(asked.threads)
    dataset = load(asked.data)
    values = dict(map(parse_assignment, asked.set))
    values |= {"epochs": asked.epochs, "eval_every": asked.epochs}
    params = build(model_class(asked.model).Params, values, asked.model)
    protocol = Protocol.of(dataset)
    split = protocol.split(dataset)
    trained = train(asked.model, params, split, mask_seen=protocol.mask_seen)
    plan = Plan(asked.model, "ndcg@10", protocol, Folder.at("."))
    test, _ = evaluate_on_test(plan, values, trained.model.state_dict(), dataset)
    valid = metrics.compute(trained.best["ranks"])
    names = ("hr@10", "ndcg@10")
    return {
        "epoch": trained.best["epoch"],
        "valid": {name: valid[name] for name in names},
        "test": {name: test[name] for name in names},
    }


if __name__ == "__main__":
    shared.run("seqtune", shared.arguments(__doc__), measure)
