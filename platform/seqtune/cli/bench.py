"""``seqtune bench``: what models cost on a data set and a machine."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import Annotated

from seqtune.catalogue import model_names
from seqtune.cli.flags import option, takes
from seqtune.cli.ready import ready
from seqtune.data import locate
from seqtune.errors import UserError
from seqtune.options import WHAT, WHERE, BenchOptions
from seqtune.space.asked import ask_training

STARTED = time.perf_counter()


@takes(BenchOptions)
def bench(
    options: BenchOptions,
    all_: Annotated[
        bool, option(WHAT, "Measure all models, one after another.", "--all", metavar="")
    ] = False,
    json_: Annotated[
        bool, option(WHERE, "Print JSON, an object for each model.", "--json", metavar="")
    ] = False,
) -> None:
    """Measures what a model costs: training, evaluation, start-up and memory."""
    if all_ and options.model:
        raise UserError(
            f"--model {options.model}: --all measures every model; leave one of the two out"
        )
    if all_:
        locate(options.data)
        from seqtune.bench import run_apart

        words = [word for word in sys.argv[2:] if word not in ("--all", "--json")]
        costs = run_apart(words, model_names())
    else:
        asked = ask_training(ready(options))
        from seqtune.bench import run

        costs = iter([run(asked, STARTED)])
    if json_:
        for cost in costs:
            print(json.dumps(asdict(cost)))
    else:
        from seqtune.bench import show

        show(costs)
