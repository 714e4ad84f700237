"""The page on all models: docs/models.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from seqtune.catalogue import declaration, model_names
from seqtune.params import Trained
from seqtune.report.chapters import (
    EVERY_MODEL,
    LETTERS,
    PAPER,
    Block,
    Chapter,
    Row,
    address,
    allowed_values,
    losses,
    samples,
    shown,
)

COMMAND = "seqtune models --markdown > docs/models.md"
INTRODUCTION = """\
# Models

This page is written from the models' own files and their search spaces, by

```bash
{command}
```

so change those, not this page. It has {n_models} models; [add-a-model.md](add-a-model.md) adds one
more, and [search_spaces/README.md](../search_spaces/README.md) says how to search differently.

"""
LEGEND = """\
Defaults stand first. Models train on

- *rows*: windows of a history, with a loss at many positions;
- *prefixes*: one sample per target, which costs several times as much, and is what most models
  need whose states see later items;
- *sessions*: many histories side by side, one event a step.

Losses: *ce* is the softmax over all items, *sampled_softmax* that over `neg_samples` of them;
*bce*, *bpr* and *gbce* (arXiv 2308.07192) compare the target with sampled items. Others stand with
their model.

A model's table has its own hyperparameters, then those of [every model](#every-model) that it
searches, or starts elsewhere than usual. What its search space leaves out stays at its default.
*from* says where a default comes from that the model sets: the paper, the authors' official code,
or us and why; the others are those of every model, or of every Transformer.

Letters in costs: """


def page() -> str:
    """Returns docs/models.md; a test compares the two."""
    names = model_names()
    chapters = [Chapter.of(name) for name in names]
    lines = INTRODUCTION.format(command=COMMAND, n_models=len(names)).splitlines()
    lines += [
        "| model | published | what it is | trains on | losses |",
        "|---|---|---|---|---|",
        *map(_overview, chapters),
        "",
        *f"{LEGEND}{LETTERS}.".splitlines(),
    ]
    for chapter in chapters:
        lines += ["", *_markdown(chapter)]
    lines += ["", *_every_model()]
    return "\n".join(lines) + "\n"


def _overview(chapter: Chapter) -> str:
    trained = declaration(chapter.name).is_trained
    return _cells(
        f"[{chapter.name}](#{chapter.name})",
        f"[{chapter.venue}]({chapter.link})" if chapter.link else chapter.venue,
        escaped(chapter.summary),
        ", ".join(samples(chapter.name)) if trained else "nothing",
        ", ".join(losses(chapter.name)) if trained else "none",
    )


def _markdown(chapter: Chapter) -> Iterator[str]:
    yield f"## {chapter.name}"
    kind = ""
    for block in (Block("prose", chapter.summary), *chapter.text):
        if not kind == block.kind == "point":
            yield ""
        kind = block.kind
        if kind == "formula":
            yield from ("```text", block.text, "```")
        else:
            yield ("- " if kind == "point" else "") + linked(escaped(block.text))
    if chapter.cost:
        yield from ("", f"**Cost.** {escaped(chapter.cost)}")
    yield from ("", *_table([*chapter.own, *(r for r in chapter.shared if r.searched or r.usual)]))
    yield from (line for fact in chapter.facts for line in ("", f"`{fact.name}` is {fact.told}"))
    yield ""
    files = (f"platform/seqtune/models/{chapter.name}.py", f"search_spaces/{chapter.name}.yaml")
    yield "Files: " + ", ".join(f"[{file}](../{file})" for file in files)


def _table(rows: Iterable[Row]) -> Iterator[str]:
    yield "| hyperparameter | default | from | allowed | searched | meaning |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        default = f"{row.default} (usually {row.usual})" if row.usual else row.default
        cells = (default, row.origin, row.allowed, row.searched, row.description)
        yield _cells(f"`{row.name}`", *map(escaped, cells))


def _every_model() -> Iterator[str]:
    yield from ("## Every model", "", EVERY_MODEL, "")
    yield "| hyperparameter | default | allowed | meaning |"
    yield "|---|---|---|---|"
    for name, field in Trained.model_fields.items():
        cells = (shown(field.default), allowed_values(field), field.description or "")
        yield _cells(f"`{name}`", *map(escaped, cells))


def _cells(*texts: str) -> str:
    return f"| {' | '.join(texts)} |"


def escaped(text: str) -> str:
    """Returns prose as Markdown that shows it as it is; what stands in backticks is code."""
    parts = text.split("``")
    for at, part in enumerate(parts):
        if at % 2:
            parts[at] = f"`{part}`".replace("|", r"\|")
        else:
            bare = re.sub(r"([*<|~$\[\]])", r"\\\1", part)
            parts[at] = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", bare)
    return "".join(parts)


def linked(text: str) -> str:
    """Turns arXiv ids and DOIs into links."""
    return PAPER.sub(lambda found: f"[{found[0]}]({address(found[0])})", text)
