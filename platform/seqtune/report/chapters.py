"""What there is to say about a model, read from its file and its search space."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo

from seqtune.catalogue import declaration
from seqtune.errors import UserError
from seqtune.params import Params, Trained, build, is_fixed, origins
from seqtune.space import load_space, shipped
from seqtune.words import brief

LETTERS = "B rows of a batch, L items of a history, D size of an item, H of a state, I items in all"


class Block(NamedTuple):
    """A piece of a docstring: a paragraph, a point of a list, or lines of formulas."""

    kind: Literal["prose", "point", "formula"]
    text: str


@dataclass(frozen=True)
class Row:
    """What there is to say about one hyperparameter."""

    name: str
    default: str
    allowed: str
    searched: str  # by the model's search space; empty where it is left at its default
    description: str
    usual: str = ""  # the default in other models, where this one has another
    origin: str = ""  # of the default, where the model sets it: the paper, or ours and why

    @property
    def told(self) -> str:
        """What is said in place of a row, where there is no choice."""
        return f"always {self.default}. {self.description}"


@dataclass(frozen=True)
class Chapter:
    """What there is to say about one model."""

    name: str
    summary: str
    venue: str  # "WSDM 2022"
    link: str  # to the paper; empty where the docstring gives neither an arXiv id nor a DOI
    text: tuple[Block, ...]  # the docstring without its first line and the cost
    cost: str
    own: tuple[Row, ...]
    shared: tuple[Row, ...]
    facts: tuple[Row, ...]  # what has one value alone
    space: str  # where the search space is written

    @classmethod
    def of(cls, name: str) -> Chapter:
        """Reads a model's file and its search space, without torch."""
        declared = declaration(name)
        summary, *text = blocks(declared.doc)
        cost = next((b.text for b in text if b.text.startswith("Cost: ")), "").removeprefix(
            "Cost: "
        )
        searched, space = _searched(name)
        fields, common = declared.params.model_fields, Trained.model_fields
        origin = origins(declared.params)
        rows = {
            key: Row(
                key,
                shown(field.default),
                allowed_values(field),
                searched.get(key, ""),
                _description(field),
                shown(common[key].default)
                if key in common and common[key].default != field.default
                else "",
                origin.get(key, ""),
            )
            for key, field in fields.items()
        }
        facts = [key for key in fields if is_fixed(fields[key])]
        own = [
            key
            for key in fields
            if key not in facts
            and (key not in common or fields[key].annotation != common[key].annotation)
        ]
        return cls(
            name,
            summary.text,
            venue(declared.doc),
            link(declared.doc),
            tuple(b for b in text if not b.text.startswith("Cost: ")),
            cost[:1].upper() + cost[1:],
            tuple(rows[key] for key in own),
            tuple(row for key, row in rows.items() if key not in (*own, *facts)),
            tuple(rows[key] for key in facts),
            space,
        )


def blocks(doc: str) -> list[Block]:
    """Splits a docstring: prose is joined, so that any width can break it; formulas stay.

    A formula is an indented line; a point of a list begins with ``- ``.
    """
    found: list[Block] = []
    for paragraph in doc.strip().split("\n\n"):
        kind = ""  # of the block that the next line of this paragraph may continue
        for line in paragraph.splitlines():
            if line.startswith("- "):
                kind = "point"
                found.append(Block("point", line[2:]))
            elif line.startswith(" ") and kind != "point":
                text = line
                if found and found[-1].kind == "formula":
                    text = found.pop().text + ("\n" if kind else "\n\n") + line
                kind = "formula"
                found.append(Block("formula", text))
            elif kind in ("prose", "point"):
                found[-1] = found[-1]._replace(text=f"{found[-1].text} {line.strip()}")
            else:
                kind = "prose"
                found.append(Block("prose", line))
    return [b._replace(text=textwrap.dedent(b.text)) for b in found]


def hung(formula: str, width: int) -> str:
    """Breaks lines that are too long; what follows stands below the second column, or indented."""
    lines = []
    for line in formula.splitlines():
        column = re.match(r" *\S+(?: \S+)* {2,}(?=\S)", line)
        at = column.end() if column else width
        if at > width // 2:
            at = len(line) - len(line.lstrip()) + 4
        lines += textwrap.wrap(line, max(width, 20), subsequent_indent=" " * at) or [""]
    return "\n".join(lines)


# A DOI or an arXiv id, and where and when: "WSDM 2022".
PAPER = re.compile(r"\b10\.\d{4,}/[^\s,;()]*[^\s,;().]|\b\d{4}\.\d{4,5}\b")
VENUE = re.compile(r"\b[A-Z][\w&-]*(?: [A-Z][\w&-]*)* (?:19|20)\d\d\b")


def venue(doc: str) -> str:
    """Returns where and when a model was published: ``WSDM 2022``, or the year of the preprint."""
    cited = " ".join(doc.split("\n", 1)[-1].split())
    if found := VENUE.search(cited):
        return found[0]
    preprint = PAPER.search(cited)
    return f"arXiv 20{preprint[0][:2]}" if preprint and "/" not in preprint[0] else ""


def link(doc: str) -> str:
    """Returns the address of the first paper that a docstring cites."""
    found = PAPER.search(doc)
    return address(found[0]) if found else ""


def address(paper: str) -> str:
    """Returns where a paper is: by its DOI or arXiv id."""
    return ("https://doi.org/" if "/" in paper else "https://arxiv.org/abs/") + paper


def allowed_values(field: FieldInfo) -> str:
    """Writes what a hyperparameter may be: ``1 to 32``, ``above 0, below 1``, ``dot | cos``."""
    kinds = [field.annotation, *get_args(field.annotation)]
    names = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    null = " or null" if type(None) in kinds else ""
    if names:
        return " | ".join(map(str, names)) + null
    if field.annotation is bool:
        return "true | false"
    bound = {
        key: getattr(one, key)
        for one in field.metadata
        for key in ("ge", "gt", "le", "lt")
        if getattr(one, key, None) is not None
    }
    number = {
        key: f"{int(value):,}" if value == int(value) else f"{value:g}"
        for key, value in bound.items()
    }
    if "ge" in bound and "le" in bound:
        return f"{number['ge']} to {number['le']}{null}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ", ".join(f"{words[key]} {text}" for key, text in number.items()) + null


def shown(value: object) -> str:
    """Writes a default for a table: null where there is none."""
    return "null" if value is None else brief(value)


def _description(field: FieldInfo) -> str:
    alias = field.validation_alias
    return f"{field.description}{f' WarpRec calls it {alias}.' if alias else ''}"


def _searched(model: str) -> tuple[dict[str, str], str]:
    """Returns what the space of a model searches or fixes, in words, and where that is written."""
    if not shipped(model).is_file():
        return {}, "not written yet"
    space = load_space(None, model)
    texts = {
        dimension.name: dimension.text + (f" (when {dimension.condition})" * bool(dimension.when))
        for dimension in space.dimensions
    }
    for name, value in space.fixed.items():
        default = space.params.model_fields[name].default
        declared = f" (declared: {shown(default)})" if value != default else ""
        texts[name] = f"no, fixed at {shown(value)}{declared}"
    return texts, space.place


def losses(model: str) -> tuple[str, ...]:
    """Returns the losses of predicting the next item that a model offers, its default first."""
    return _default_first(model, "loss_type") or ("ce",)


def samples(model: str) -> tuple[str, ...]:
    """Returns what a model can train on (rows, prefixes, sessions), its default first.

    A mode counts where some setting allows it: another choice beside it may be needed.
    """
    params = declaration(model).params
    modes = _default_first(model, "train_mode") or ("rows",)
    if "train_mode" not in params.model_fields:
        return modes
    beside = [
        {name: value} for name in params.model_fields for value in _choices(params, name)
    ]  # one change at a time
    return tuple(
        mode
        for mode in modes
        if any(_allows(params, change | {"train_mode": mode}) for change in [{}, *beside])
    )


def _default_first(model: str, name: str) -> tuple[str, ...]:
    """Returns the values of a choice, its default first."""
    params = declaration(model).params
    values = tuple(map(str, _choices(params, name)))
    first = str(params.model_fields[name].default) if values else ""
    return tuple(sorted(values, key=lambda value: value != first))


def _choices(params: type[Params], name: str) -> tuple[object, ...]:
    annotation = params.model_fields[name].annotation if name in params.model_fields else None
    if annotation is bool:
        return (False, True)
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _allows(params: type[Params], values: dict[str, object]) -> bool:
    try:
        build(params, values, "handbook")
    except UserError:
        return False
    return True


EVERY_MODEL = (
    "All models that are trained have these hyperparameters; one that is not has max_seq_len "
    "and seed."
)
