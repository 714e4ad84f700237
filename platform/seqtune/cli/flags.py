"""From declared options to a command: its signature, as Typer reads it."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer

from seqtune.catalogue import model_names
from seqtune.options import DATA, RESOURCES, SEARCH, WHAT, WHERE, Declared, Flag, declared

PANELS = (WHAT, DATA, SEARCH, RESOURCES, WHERE)

O = TypeVar("O")  # noqa: E741 - options of a command
P = ParamSpec("P")


def takes(
    options: type[O], without: Collection[str] = ()
) -> Callable[[Callable[Concatenate[O, P], None]], Callable[..., None]]:
    """Makes a function of ``options`` into a command that has each of them as an option.

    Those ``without`` keep their defaults.

    The further parameters of the function are options of the command line alone.
    """

    def command(function: Callable[Concatenate[O, P], None]) -> Callable[..., None]:
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in list(inspect.signature(function, eval_str=True).parameters.values())[
                1:
            ]
        ]
        known = {one.name: one for one in declared(options) if one.name not in without}

        make: Any = options
        call: Any = function

        @functools.wraps(function)
        def run(**given: Any) -> None:
            for first, rest in again.items():
                given[first], given[rest] = given[first][0], given[first][1:]
            values = {name: _read(one, given.pop(name)) for name, one in known.items()}
            call(make(**values), **given)

        # Two fields of one name are one option that may be given again: its first word, the others.
        by_names = {one.names: one.name for one in reversed(known.values())}
        firsts = {one.name: by_names[one.names] for one in known.values()}
        again = {first: rest for rest, first in firsts.items() if rest != first}
        parameters = [
            _parameter(one, known[again[one.name]].flag if one.name in again else None)
            for one in known.values()
            if firsts[one.name] == one.name
        ]
        parameters += own
        places = {panel: place for place, panel in enumerate(PANELS)}
        parameters.sort(key=lambda p: places.get(_panel(p), -1))  # arguments first
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        del run.__wrapped__  # its signature is not that of the command
        return run

    return command


def option(panel: str, text: str, *names: str, **more: Any) -> Any:
    """Declares an option of the command line alone."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def complete_model(incomplete: str) -> list[str]:
    """Completes the name of a model in a shell, or the last of several."""
    before, comma, last = incomplete.lower().rpartition(",")
    return [f"{before}{comma}{name}" for name in model_names() if name.startswith(last)]


def _panel(parameter: inspect.Parameter) -> str:
    info = parameter.annotation.__metadata__[0]
    return str(info.rich_help_panel)


def _parameter(one: Declared, again: Flag | None) -> inspect.Parameter:
    flag, kind, default = one.flag, one.kind, one.default
    if again is not None:
        kind, default, flag = list[str], [default], replace(flag, text=f"{flag.text} {again.text}")
    elif typing.get_origin(kind) is tuple:
        kind, default = list[str], list(default)
    elif flag.read is not None:
        kind = str if isinstance(default, str) else str | None
    elif one.required:
        kind = str | None  # its absence gets a sentence of ours
    choices = typing.get_origin(kind) is typing.Literal
    info = option(
        flag.panel,
        flag.text,
        "/".join(one.names),
        metavar=None if choices else flag.metavar,
        min=flag.least,
        show_default=flag.shown or default not in (None, [], False),
        autocompletion=complete_model if flag.is_model else None,
    )
    return inspect.Parameter(
        one.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, info],
    )


def _read(one: Declared, value: Any) -> Any:
    read = one.flag.read or (lambda word: word)
    if isinstance(value, list):
        return tuple(read(word) for word in value)
    return read(value) if isinstance(value, str) else value
