"""Reads YAML that a person wrote, and refuses what only a machine would write.

Like PyYAML's ``SafeLoader``, but depth, size, numbers and aliases that multiply are bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

SIZE = 1_000_000  # characters
DEPTH = 30
NODES = 100_000  # with every alias written out
NUMBER = 2**63  # whole numbers are below


class Loader(yaml.SafeLoader):
    """Raises MarkedYAMLError for all that cannot be read."""

    def __init__(self, text: str) -> None:
        if len(text) > SIZE:
            raise yaml.YAMLError(f"has {len(text):,} characters, and {SIZE:,} are read at most")
        super().__init__(text)
        self.depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Composes a node, which is not nested too deeply."""
        self.depth += 1
        if self.depth > DEPTH:
            at: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise refused(at, f"is nested more than {DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> Any:
        """Composes the document, whose aliases do not multiply."""
        node = super().get_single_node()
        if node is not None:
            self._weigh(node, {})
        return node

    def _weigh(self, node: Any, known: dict[int, int | None]) -> int:
        if id(node) not in known:
            known[id(node)] = None
            known[id(node)] = 1 + sum(self._weigh(child, known) for child in _children(node))
        weight = known[id(node)]
        if weight is None:
            raise refused(node, "holds itself")
        if weight > NODES:
            raise refused(node, f"has more than {NODES:,} values, with its aliases written out")
        return weight

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Builds a value; one that Python cannot build is refused at its place."""
        try:
            value = super().construct_object(node, deep)
        except (ValueError, OverflowError):
            raise refused(node, f"{node.value[:40]!r} cannot be read") from None
        if isinstance(value, int) and abs(value) >= NUMBER:
            raise refused(node, f"a number of {len(node.value)} digits is too large")
        return value


def refused(at: Any, problem: str) -> yaml.MarkedYAMLError:
    """Returns the error that a node or an event is."""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def scalar(text: str) -> object:
    """Reads a value as it stands on a command line; what is no YAML is a text."""
    try:
        return Loader(text).get_single_data()
    except yaml.YAMLError:
        return text


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
