"""Does the protocol decide which hyperparameters are chosen? Random settings under two splits.

    python tests/benchmarks/protocols.py --data ml-1m.parquet [--model gru4rec] [--settings 40]
        [--epochs 6] [--out FILE] [--minutes N]

Each setting is trained twice, with one thread and seed 0: by leave-one-out, and by a global
temporal split at nine tenths of all events, with the last item of each user as target. Then the
table says how well validation by either ranks the settings as the temporal test does (Spearman),
and what is lost on that test by choosing with it. What FILE holds already is not trained again; it
has metrics alone, and no interactions.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "platform"), str(HERE / "replay")]

SPLITS = {"leave-one-out": "leave-one-out", "temporal": "time:0.9"}
METRIC = "ndcg@10"
DRAWS = 2000  # of settings with repetition, for the interval of a figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="gru4rec")
    parser.add_argument("--settings", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=HERE / "protocols.json")
    parser.add_argument("--minutes", type=float, default=1e9)
    asked = parser.parse_args()
    known = json.loads(asked.out.read_text()) if asked.out.exists() else []
    done = {(row["setting"], row["split"]) for row in known}
    until = time.monotonic() + 60 * asked.minutes
    for setting in range(1, asked.settings + 1):
        for split in SPLITS:
            if (setting, split) not in done and time.monotonic() < until:
                row = trained(asked, setting, split)
                known.append(row)
                asked.out.write_text(json.dumps(known, indent=1) + "\n")
                print(f"{setting} {split}: {row['valid']:.4f} {row['test']:.4f}", flush=True)
    print(table(known))


def trained(asked: argparse.Namespace, setting: int, split: str) -> dict[str, Any]:
    """Trains a random setting by a split; returns what it reaches where validation is best."""
    import torch
    from record import point

    from seqtune import batches, metrics
    from seqtune.data import Protocol, load
    from seqtune.evaluate import evaluate
    from seqtune.model import model_class
    from seqtune.params import build
    from seqtune.train import train

    torch.set_num_threads(1)
    dataset = load(asked.data)
    protocol = Protocol.of(dataset, split_by=SPLITS[split])
    held_out, kind = protocol.split(dataset), model_class(asked.model)
    values = point(asked.model, setting) | {"epochs": asked.epochs, "eval_every": 2, "seed": 0}
    seen = protocol.mask_seen
    found = train(asked.model, build(kind.Params, values, asked.model), held_out, mask_seen=seen)
    data = batches.sequences(held_out, torch.device("cpu"), times=kind.uses_times)
    ranks = evaluate(found.model, data, held_out, held_out.test, mask_seen=seen).ranks
    valid, test = found.best["metrics"][METRIC], metrics.compute(ranks)[METRIC]
    return {"setting": setting, "split": split, "valid": valid, "test": test, "values": values}


def table(rows: list[dict[str, Any]]) -> str:
    """Returns what validation by either split is worth on the temporal test."""
    by = {split: {r["setting"]: r for r in rows if r["split"] == split} for split in SPLITS}
    both = sorted(by["leave-one-out"].keys() & by["temporal"].keys())
    if len(both) < 3:
        return "too few settings are trained by both splits"
    test = np.array([by["temporal"][n]["test"] for n in both])
    lines = [
        f"{len(both)} settings; the best has {METRIC} {test.max():.4f} on the temporal test",
        "| chosen by validation of | rank correlation | has | lost |",
        "|---|---|---|---|",
    ]
    for split in SPLITS:
        valid = np.array([by[split][n]["valid"] for n in both])
        has = test[np.argmax(valid)]
        low, high = interval(valid, test)
        rank = f"{stats.spearmanr(valid, test).statistic:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"| {split} | {rank} | {has:.4f} | {1 - has / test.max():.1%} |")
    own = [by["leave-one-out"][n] for n in both]
    rank = stats.spearmanr([r["valid"] for r in own], [r["test"] for r in own]).statistic
    return "\n".join([*lines, f"leave-one-out on its own test: rank correlation {rank:.2f}"])


def interval(valid: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of a rank correlation, by the bootstrap over settings."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(valid), (DRAWS, len(valid)))
    found = [stats.spearmanr(valid[some], test[some]).statistic for some in draws]
    low, high = np.nanquantile(found, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
