"""Which models there are, and what their files declare, read without torch."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtune.errors import UserError, nearest
from seqtune.params import Params, Trained

MODELS = Path(__file__).parent / "models"
# Those that learn most in the minutes of a first look (docs/performance.md), best known first.
FAST = ("sasrec", "gru4rec", "core", "fossil", "stan")


@dataclass(frozen=True)
class Declaration:
    """What a model's file declares, read without running the model."""

    name: str
    params: type[Params]
    doc: str

    @property
    def summary(self) -> str:
        """The first line of the model's docstring."""
        return self.doc.splitlines()[0]

    @property
    def is_trained(self) -> bool:
        """Whether the model is trained at all: STAN is not."""
        return issubclass(self.params, Trained)

    @property
    def epochs(self) -> int:
        """The epochs that a training takes at most by default."""
        return int(self.params.model_fields["epochs"].default) if self.is_trained else 0


def model_names() -> list[str]:
    """Returns the models: a file ``models/sasrec.py`` is the model ``sasrec``."""
    return sorted(path.stem for path in MODELS.glob("*.py") if not path.stem.startswith("_"))


def check_model(name: str, place: str = "--model") -> str:
    """Returns the model's name in lower case; an unknown one is a UserError with the nearest."""
    known = model_names()
    if name.lower() not in known:
        raise UserError(f"{place} {name}: no such model{nearest(name, known)}")
    return name.lower()


def check_models(names: str, place: str = "--model") -> tuple[str, ...]:
    """Returns the models of ``sasrec,gru4rec``, of ``all`` or of ``fast``, each once."""
    found: dict[str, None] = {}
    for name in names.split(","):
        match word := (name.strip() if "," in names else name).lower():
            case "all":
                found |= dict.fromkeys([*FAST, *model_names()])
            case "fast":
                found |= dict.fromkeys(FAST)
            case _:
                found[check_model(word or names, place)] = None
    return tuple(found)


@functools.cache
def declaration(name: str) -> Declaration:
    """Reads a model's ``Params`` and docstring from its file without importing torch.

    Importing torch takes over a second; a mistyped hyperparameter deserves a faster answer. Only
    the nested ``Params`` class and the imports from ``seqtune.params``, ``typing`` and
    ``pydantic`` are executed (a test compares the result with the real class for every model).
    """
    tree = ast.parse((MODELS / f"{check_model(name)}.py").read_text())
    model = next(
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name.lower() == name.lower()
    )
    params = next(n for n in model.body if isinstance(n, ast.ClassDef) and n.name == "Params")
    imports = [
        node
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        and node.module in ("__future__", "typing", "pydantic", "seqtune.params")
    ]
    model.body, model.bases, model.decorator_list = [params], [], []
    module = ast.Module(body=[*imports, model], type_ignores=[])
    namespace: dict[str, Any] = {"__name__": f"seqtune.models.{name}"}
    doc = ast.get_docstring(ast.parse((MODELS / f"{name.lower()}.py").read_text())) or ""
    exec(compile(module, str(MODELS / f"{name}.py"), "exec"), namespace)
    found = namespace[model.name].Params
    # Annotations are strings, and the module that pydantic would look them up in is not there.
    found.model_rebuild(_types_namespace=namespace)
    return Declaration(name.lower(), found, doc)
