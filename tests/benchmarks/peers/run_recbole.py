"""RecBole: its data set, its loaders, the loop of its Trainer and its evaluation.

A training sample is a prefix with one target, so targets are samples; BERT4Rec's are the masked
items of its samples. RecBole evaluates without a mask for seen items, and so it is timed; the
metrics after ``--epochs`` have them masked, as those of the others.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import shared
import torch

NAME = "interactions"
# RecBole asks for names that NumPy 2 has dropped.
SUCCESSOR = {"float_": "float64", "complex_": "complex128", "unicode_": "str_"}


def write(histories: dict[int, list[int]], folder: Path) -> None:
    """Writes RecBole's file format; the time of an event is its place in the history."""
    folder.mkdir()
    with (folder / f"{NAME}.inter").open("w") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, items in histories.items():
            file.writelines(f"{user}\t{item}\t{at}\n" for at, item in enumerate(items))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Trains and evaluates."""
    torch.set_num_threads(asked.threads)
    histories = shared.histories(asked.data)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # RecBole writes logs where it runs
        write(histories, Path(scratch) / NAME)
        return trained(asked, histories, scratch)


def trained(
    asked: argparse.Namespace, histories: dict[int, list[int]], scratch: str
) -> dict[str, Any]:
    """Trains and evaluates in a folder that has the data."""
    for old, new in SUCCESSOR.items():
        setattr(np, old, getattr(np, new))

    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    sys.argv = sys.argv[:1]  # RecBole would read the command line too
    own = {
        "data_path": scratch,
        "checkpoint_dir": scratch,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": "full",
        },
        "train_neg_sample_args": None,
        "use_gpu": False,
        "show_progress": False,
    }
    config = Config(asked.model, NAME, config_dict=own | shared.settings(asked.set))
    logging.disable(logging.WARNING)
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.eval_collector.data_collect(train_data)

    clock = shared.Clock(None if asked.epochs else asked.seconds)
    loss = timed(model.calculate_loss, clock)
    if asked.epochs:
        for epoch in range(asked.epochs):
            trainer._train_epoch(train_data, epoch, loss_func=loss)
        return {
            "valid": quality(model, dataset, valid_data, histories, held=2),
            "test": quality(model, dataset, test_data, histories, held=1),
        }
    epoch = 0
    try:
        while True:
            trainer._train_epoch(train_data, epoch, loss_func=loss)
            epoch += 1
    except shared.TimeIsUpError:
        pass

    def evaluate() -> object:
        return trainer.evaluate(valid_data, load_best_model=False)

    return clock.result() | shared.users_per_second(len(valid_data._dataset), evaluate)


def timed(loss: Callable[[Any], Any], clock: shared.Clock) -> Callable[[Any], Any]:
    """Returns the loss function, which a step calls first; it ends the training in time."""

    def calculate(interaction: Any) -> Any:
        masked = "MASK_INDEX" in interaction.interaction
        # Padding of the list of masked places is 0, which RecBole leaves out of the loss.
        n = int((interaction["MASK_INDEX"] > 0).sum()) if masked else len(interaction)
        if clock.tick(n):
            raise shared.TimeIsUpError
        return loss(interaction)

    return calculate


@torch.no_grad()
def quality(
    model: Any, dataset: Any, loader: Any, histories: dict[int, list[int]], held: int
) -> dict[str, float]:
    """Ranks the event that is ``held`` from the end among all items that are not before it."""
    model.eval()
    seen = {}
    for user, items in histories.items():
        (row,) = dataset.token2id(dataset.uid_field, [str(user)])
        seen[int(row)] = dataset.token2id(dataset.iid_field, [str(i) for i in items[:-held]])
    ranks = []
    for interaction, _, _, target in loader:
        scores = model.full_sort_predict(interaction).view(len(interaction), -1)
        own = scores[torch.arange(len(scores)), target]
        scores[:, 0] = -torch.inf
        for row, user in enumerate(interaction[dataset.uid_field].tolist()):
            scores[row, torch.from_numpy(np.asarray(seen[user]))] = -torch.inf
        scores[torch.arange(len(scores)), target] = own
        above = (scores > own[:, None]).sum(1)
        at_least = (scores >= own[:, None]).sum(1)
        ranks.append((above + at_least + 1) / 2)
    return shared.metrics(torch.cat(ranks).numpy())


if __name__ == "__main__":
    shared.run("recbole", shared.arguments(__doc__), measure)
