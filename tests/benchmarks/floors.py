"""Floors that a trained model must beat: popularity and Markov chains, in the models' protocol.

    python tests/benchmarks/floors.py beauty.parquet [--rank-seen]

Each floor is counted twice: on what the models train on, as every report does, and on everything
but the test items, as some published floors are.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from seqtune.data import leave_one_out, load
from seqtune.errors import UserError
from seqtune.floors import floors


def main() -> None:
    """Prints the floors of a data set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", help="a file, or the name of a generated set")
    parser.add_argument("--rank-seen", action="store_true", help="seen items compete")
    parser.add_argument("--mask-seen", action="store_true", help="seen items are left out")
    given = parser.parse_args()
    try:
        split = leave_one_out(load(given.data))
    except UserError as error:
        parser.error(str(error))
    masked = given.mask_seen or not (given.rank_seen or split.dataset.has_repeats)
    more = split.train_end.copy()
    more[split.test.users] = split.test.events
    for label, one in (
        ("training events", split),
        ("all but the test", replace(split, train_end=more)),
    ):
        for floor in floors(one, mask_seen=masked):
            print(
                f"{label:18} {floor.name:15} hr@10 {floor.test['hr@10']:.4f}  "
                f"ndcg@10 {floor.test['ndcg@10']:.4f}  {floor.seconds:.1f} s"
            )


if __name__ == "__main__":
    main()
