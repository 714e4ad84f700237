"""YAML files whose keys know their line, so that a mistake is answered with its place.

Like ``yaml.safe_load``, but a key that stands twice is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from seqtune.errors import UserError
from seqtune.yamltext import Loader, refused


class Keys(dict[str, Any]):
    """A mapping of the file; ``at`` names the place of a key."""

    def __init__(self, place: str = "", line: int = 0) -> None:
        super().__init__()
        self.place, self.line = place, line
        self.lines: dict[str, int] = {}

    def at(self, key: str | None = None) -> str:
        """Returns ``file:line`` of a key, or of the mapping itself."""
        return f"{self.place}:{self.line if key is None else self.lines.get(key, self.line)}"

    def renamed(self, names: Mapping[str, str]) -> Keys:
        """Returns the mapping with other names for some of its keys, at their places.

        Raises:
            UserError: a key stands there under both names.
        """
        found = Keys(self.place, self.line)
        for key, value in self.items():
            name = names.get(key, key)
            if name in found:
                raise UserError(f"{self.at(key)}: {key} is {name}, which stands here too; keep one")
            found[name], found.lines[name] = value, self.lines.get(key, self.line)
        return found


class _Loader(Loader):
    """Builds ``Keys`` for mappings."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Keys:
    keys = Keys(loader.name, node.start_mark.line + 1)
    found: dict[str, yaml.Node] = {}
    for key, _ in node.value:
        if key.value != "<<" and (first := found.setdefault(str(key.value), key)) is not key:
            raise refused(first, f"{key.value} stands twice; remove one")
    loader.flatten_mapping(node)
    for key, value in node.value:
        name = str(loader.construct_object(key, deep=True))
        keys[name] = loader.construct_object(value, deep=True)
        keys.lines[name] = key.start_mark.line + 1
    return keys


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str, place: str, wanted: str) -> Keys:
    """Reads the mapping that ``text`` is; ``wanted`` names its keys, for who wrote none.

    Raises:
        UserError: the text is no YAML, or no mapping.
    """
    try:
        loader = _Loader(text)
        loader.name = place
        content = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{place}:{line}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:  # too long, or a character that YAML does not allow
        raise UserError(f"{place}: {str(error).splitlines()[0]}") from None
    if isinstance(content, Keys):
        return content
    raise UserError(f"{place}: write {wanted}, not {kind(content)}")


def kind(value: object) -> str:
    """Says what a value is, for who expects another: ``a list``, ``nothing``, ``3``."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "a mapping" if isinstance(value, dict) else f"{value!r}"
