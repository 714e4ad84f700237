"""How mistakes on the command line are answered: in one sentence, with the nearest fix."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from typing import Any

from typer.exceptions import TyperException

from seqtune.catalogue import declaration, model_names
from seqtune.errors import UserError, sentence, visible
from seqtune.secrecy import redact


def say(text: str, prefix: str = "") -> None:
    """Prints a line on stderr."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    line = redact(visible(text, keep="\n"))
    console.print(Text.assemble((prefix, "bold red"), line), soft_wrap=True)


def refuse_twice(command: Any, words: Sequence[str]) -> None:
    """Refuses an option that is given twice and holds one value: the last would win in silence.

    Raises:
        UserError: names the option and both values.
    """
    single = {
        name: option
        for option in command.params
        if not getattr(option, "multiple", False) and not getattr(option, "is_flag", False)
        for name in option.opts
        if name.startswith("--")
    }
    found: dict[str, str] = {}
    values = iter(words)
    for word in values:
        name, equals, value = word.partition("=")
        if name not in single:
            continue
        value = value if equals else next(values, "")
        if name in found:
            raise UserError(f"{name} {value}: stands after {name} {found[name]}; keep one of them")
        found[name] = value


def usage_sentence(error: TyperException) -> str:
    """Turns a mistake in the command line into one sentence: place, value, rule, nearest fix."""
    return sentence(_usage(error))


def _usage(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    flags = [flag for one in context.command.params for flag in one.opts] if context else []
    message = error.format_message().rstrip(".")
    option = getattr(error, "option_name", None)
    if option and hasattr(error, "possibilities"):
        page = f"see {context.command_path} --help" if context else "see --help"
        hint = _hyperparameter(option) if "--set" in flags else ""
        if not hint and (close := difflib.get_close_matches(option, flags, n=1)):
            hint = f"did you mean {close[0]!r}?"
        return f"{option}: no such option; {hint or page}"
    if option:
        return f"{option}: {message.removeprefix(f'Option {option!r} ')}"
    if parameter := getattr(error, "param", None):
        cause: Any = error.__cause__
        first = cause.errors()[0] if hasattr(cause, "errors") else {}
        rule = str(first.get("msg", message)).partition(", unable")[0].rstrip(".")
        rule = rule.removeprefix("Value error, ").replace("Input should be", "must be")
        value = f" {first['input']}" if isinstance(first.get("input"), str) else ""
        return f"{parameter.opts[0]}{value}: {rule}"
    if extra := re.fullmatch(r"Got unexpected extra argument\S* \((.*)\)", message):
        words = extra[1].split()
        fix = f"--model {words[0]}" if words[0].lower() in model_names() else "--NAME VALUE"
        return f"{extra[1]}: stands alone; write {fix}"
    return message


def _hyperparameter(option: str) -> str:
    """Says how to write a hyperparameter that was given as an option; empty where it is none."""
    name = option.lstrip("-").replace("-", "_")
    words = iter(sys.argv[1:])
    given = {word: next(words, "") for word in words if word in ("--model", option)}
    known = [given["--model"]] if given.get("--model") in model_names() else model_names()
    if not any(name in declaration(model).params.model_fields for model in known):
        return ""
    written = next((w.partition("=")[2] for w in sys.argv if w.startswith(f"{option}=")), "")
    value = given.get(option, written) or "VALUE"
    return f"it is a hyperparameter: --set {name}={value}"
