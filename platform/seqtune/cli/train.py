"""``seqtune train``: train a model once."""

from __future__ import annotations

from seqtune.cli.flags import takes
from seqtune.cli.ready import ready
from seqtune.cli.tune import stopped
from seqtune.options import TrainOptions
from seqtune.space.asked import ask_training


@takes(TrainOptions)
def train(options: TrainOptions) -> None:
    """Trains a model once: its defaults, changed by --params and by --set."""
    options = ready(options)
    asked = ask_training(options)
    from seqtune.report.report import show_training
    from seqtune.report.view import TrainView

    view = TrainView(options.metric)
    try:
        from seqtune.study import once

        result = once.train_once(asked, view, track=True)
    except KeyboardInterrupt:
        raise stopped(options, view) from None
    show_training(result)
