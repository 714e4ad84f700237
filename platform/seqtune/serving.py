"""The model that MLflow serves: a script that runs inside the server (models from code).

MLflow copies this file and the package next to the checkpoint, so that a server needs the
dependencies and no installed seqtune.
"""

from __future__ import annotations

import logging
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from seqtune.checkpoint import Recommender, load
from seqtune.errors import UserError
from seqtune.storage import Folder

# It remarks that ids may be numbers or texts; they may.
logging.getLogger("mlflow.types.type_hints").setLevel(logging.ERROR)


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
        try:
            found = self.recommender.recommend(model_input, **(params or {}))
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return [recommendation._asdict() for recommendation in found]


set_model(RecommenderModel())
