"""RecTools: its data preparation, its Lightning module and its recommendations.

Targets are the positions with a weight in its batches. It evaluates by recommending ten items that
were not seen to each user.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import Any

import numpy as np
import pandas as pd
import shared
import torch
from pytorch_lightning import Callback, Trainer
from rectools.dataset import Dataset
from rectools.models import SASRecModel

MODELS = {"SASRecModel": SASRecModel}


class Timer(Callback):
    """Ends the training in time."""

    def __init__(self, clock: shared.Clock) -> None:
        self.clock = clock

    def __deepcopy__(self, memo: dict[int, Any]) -> Timer:  # RecTools trains with a copy
        return self

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, at: int) -> int | None:
        if self.clock.tick(int((batch["yw"] != 0).sum())):
            trainer.should_stop = True
            return -1
        return None


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Trains and evaluates."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning").setLevel(logging.ERROR)
    torch.set_num_threads(asked.threads)
    events = pd.read_csv(asked.data, usecols=["user_id", "item_id"])
    events["weight"] = 1.0
    events["datetime"] = pd.to_datetime(np.arange(len(events)), unit="s")  # the order of the file
    from_end = events.groupby("user_id").cumcount(ascending=False)
    known = Dataset.construct(events[from_end >= 2])
    clock = shared.Clock(None if asked.epochs else asked.seconds)

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=asked.epochs or 1_000_000,
            accelerator="cpu",
            devices=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            callbacks=[Timer(clock)],
        )

    model = MODELS[asked.model](
        get_trainer_func=trainer,
        verbose=0,
        recommend_torch_device="cpu",
        **shared.settings(asked.set),
    )
    model.fit(known)

    def ranks(before: Dataset, target: pd.DataFrame) -> np.ndarray:
        users = target["user_id"].to_numpy()
        lists = model.recommend(
            users, before, k=shared.K, filter_viewed=True, on_unsupported_targets="ignore"
        )
        hits = target.merge(lists, how="left", on=["user_id", "item_id"])
        return hits["rank"].fillna(np.inf).to_numpy()

    if asked.epochs:
        with_valid = Dataset.construct(events[from_end >= 1])
        return {
            "valid": shared.metrics(ranks(known, events[from_end == 1])),
            "test": shared.metrics(ranks(with_valid, events[from_end == 0])),
        }
    valid = events[from_end == 1]
    return clock.result() | shared.users_per_second(len(valid), lambda: ranks(known, valid))


if __name__ == "__main__":
    shared.run("RecTools", shared.arguments(__doc__), measure)
