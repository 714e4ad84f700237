"""gSASRec-pytorch: its model, its loaders and its evaluation, from a checkout of its repository.

Its training script runs when it is imported, so a step is driven here the way it does it. Targets
are the positions that its mask keeps. It validates on 512 users; after ``--epochs`` all are ranked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import shared
import torch
from torch import Tensor
from torch.nn import functional

VALID_USERS = 512


def write(histories: dict[int, list[int]], folder: Path, valid_users: int) -> None:
    """Writes its files: items count from 1, the last two events of each user are held out."""
    items = sorted(set().union(*histories.values()))
    number = {item: at for at, item in enumerate(items, start=1)}
    rows = [[number[item] for item in items] for items in histories.values()]
    some = np.random.default_rng(0).permutation(len(rows))[:valid_users]
    parts = {"train": (rows, 2), "val": ([rows[i] for i in some], 2), "test": (rows, 1)}
    for part, (chosen, held) in parts.items():
        (folder / part).mkdir(parents=True)
        lines = [" ".join(map(str, row[:-held])) for row in chosen]
        (folder / part / "input.txt").write_text("\n".join(lines) + "\n")
        targets = [str(row[-held]) for row in chosen]
        (folder / part / "output.txt").write_text("\n".join(targets) + "\n")
    events = sum(map(len, rows))
    stats = {"num_users": len(rows), "num_items": len(number), "num_interactions": events}
    (folder / "dataset_stats.json").write_text(json.dumps(stats))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Trains and evaluates."""
    torch.set_num_threads(asked.threads)
    checkout = Path(asked.checkout).resolve()
    sys.path.insert(0, str(checkout))
    histories = shared.histories(asked.data)
    valid_users = len(histories) if asked.epochs else VALID_USERS
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # its loaders look for datasets/ where they run
        from utils import load_config

        config = load_config(str(checkout / f"{asked.model}.py"))
        for name, value in shared.settings(asked.set).items():
            assert hasattr(config, name), f"its configuration has no {name}"
            setattr(config, name, value)
        write(histories, Path(scratch) / "datasets" / config.dataset_name, valid_users)
        return trained(asked, config)


def trained(asked: argparse.Namespace, config: Any) -> dict[str, Any]:
    """Trains and evaluates in a folder that has the data."""
    from dataset_utils import (
        get_num_items,
        get_test_dataloader,
        get_train_dataloader,
        get_val_dataloader,
    )
    from eval_utils import evaluate
    from utils import build_model

    torch.manual_seed(0)
    model = build_model(config)
    loader = get_train_dataloader(
        config.dataset_name,
        batch_size=config.train_batch_size,
        max_length=config.sequence_length,
        train_neg_per_positive=config.negs_per_pos,
    )
    optimizer = torch.optim.Adam(model.parameters())
    n_items = get_num_items(config.dataset_name)
    clock = shared.Clock(None if asked.epochs else asked.seconds)
    epoch, up = 0, False
    while not up and epoch != asked.epochs:
        model.train()
        for positives, negatives in loader:
            kept = int((positives[:, :-1] != n_items + 1).sum())
            if up := clock.tick(kept):
                break
            loss_of(model, config, n_items, positives, negatives).backward()
            optimizer.step()
            optimizer.zero_grad()
        epoch += 1

    def evaluated(part: Any) -> dict[str, float]:
        found = evaluate(
            model,
            part(config.dataset_name, config.eval_batch_size, config.sequence_length),
            config.metrics,
            config.recommendation_limit,
            config.filter_rated,
            "cpu",
        )
        named = {str(measure): float(value) for measure, value in found.items()}
        return {"ndcg@10": named["nDCG@10"], "hr@10": named["R@10"]}

    if asked.epochs:
        return {"valid": evaluated(get_val_dataloader), "test": evaluated(get_test_dataloader)}
    timing = shared.users_per_second(VALID_USERS, lambda: evaluated(get_val_dataloader))
    return clock.result() | timing


def loss_of(model: Any, config: Any, n_items: int, positives: Tensor, negatives: Tensor) -> Tensor:
    """Computes gBCE with the operations of its script, in float64 where that does."""
    inputs, labels = positives[:, :-1], positives[:, 1:]
    states, _ = model(inputs)
    candidates = torch.cat([labels[..., None], negatives[:, 1:, :]], dim=-1)
    vectors = model.get_output_embeddings()(candidates)
    mask = (inputs != n_items + 1).float()
    logits = torch.einsum("bse, bsne -> bsn", states, vectors)
    wanted = torch.zeros_like(logits)
    wanted[:, :, 0] = 1

    alpha = config.negs_per_pos / (n_items - 1)
    beta = alpha * ((1 - 1 / alpha) * config.gbce_t + 1 / alpha)
    eps, most = 1e-10, torch.finfo(torch.float64).max
    own, others = logits[:, :, :1].double(), logits[:, :, 1:].double()
    power = torch.sigmoid(own).clamp(eps, 1 - eps).pow(-beta).clamp(1 + eps, most)
    own = torch.div(1.0, power - 1).clamp(eps, most).log()
    loss = functional.binary_cross_entropy_with_logits(
        torch.cat([own, others], -1), wanted, reduction="none"
    )
    return (loss.mean(-1) * mask).sum() / mask.sum()


if __name__ == "__main__":
    shared.run("ir-measures", shared.arguments(__doc__), measure)
