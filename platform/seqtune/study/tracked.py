"""What a study or a training tells MLflow while it lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from seqtune.storage import Folder, own_scratch
from seqtune.study.lease import LostError
from seqtune.track import Tracker


@contextmanager
def tracked(
    uri: str, name: str, id_: str, folder: Folder, say: Callable[[str], None]
) -> Iterator[Tracker]:
    """Yields what writes to MLflow, and tells it where the block ends with an error."""
    local = folder.local or own_scratch() / id_
    tracker = Tracker(uri, name, id_, local / "mlflow.journal", say=say)
    try:
        yield tracker
    except BaseException as error:
        if tracker.begun and not isinstance(error, LostError):  # else it goes on elsewhere
            tracker.study_ended("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        tracker.close(timeout=10)
        raise
