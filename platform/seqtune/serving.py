"""The model that MLflow serves: a script that runs inside the server (models from code).

MLflow copies this file and the package next to the checkpoint, so that a server needs the
dependencies and no installed seqtune.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from seqtune.checkpoint import Recommender, load
from seqtune.errors import UserError, nearest
from seqtune.storage import Folder

# It remarks that ids may be numbers or texts; they may.
logging.getLogger("mlflow.types.type_hints").setLevel(logging.ERROR)

PARAMS = ("exclude_seen", "k")


class Unknown(logging.Filter):
    """Remembers, for each thread, the parameters that MLflow was about to ignore.

    MLflow drops what the signature does not have, with a warning to the log of the server, before
    a model sees it; whoever misspells ``k`` would get ten items and status 200.
    """

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        """Takes note of a warning about this model."""
        words = record.getMessage().split("'")[1::2]
        if record.getMessage().startswith("Unrecognized params") and words[-2:]:
            ignored, ours = words[: -len(PARAMS)], words[-len(PARAMS) :]
            if sorted(ours) == sorted(PARAMS):
                self.here.names = ignored
        return True

    def taken(self) -> list[str]:
        """Returns the names, and forgets them."""
        names: list[str] = getattr(self.here, "names", [])
        self.here.names = []
        return names


unknown = Unknown()
logging.getLogger("mlflow.models.utils").addFilter(unknown)


class RecommenderModel(PythonModel):
    """Answers histories with the items to show next."""

    recommender: Recommender

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the checkpoint."""
        self.recommender = load(Folder.at(context.artifacts["checkpoint"]))

    def predict(
        self,
        context: PythonModelContext,
        model_input: list[list[int | str]],
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, list[int | str] | list[float] | str]]:
        """Returns ``items``, ``scores`` and ``note`` for each history, newest item last."""
        if names := unknown.taken():
            raise MlflowException.invalid_parameter_value(
                f"params: there is no {names[0]!r}{nearest(names[0], PARAMS)}"
            )
        try:
            found = self.recommender.recommend(model_input, **(params or {}))
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return [recommendation._asdict() for recommendation in found]


set_model(RecommenderModel())
