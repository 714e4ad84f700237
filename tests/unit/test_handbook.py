"""What is said about models: every docstring has its parts, and the page on models has them all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, create_model

from seqtune.catalogue import declaration, model_names
from seqtune.params import Trained
from seqtune.report import chapters, handbook
from seqtune.report.chapters import Block, Chapter, blocks
from seqtune.space import load_space

ROOT = Path(__file__).parents[2]
every_model = pytest.mark.parametrize("name", model_names())


# What every model says.


@every_model
def test_a_docstring_has_a_line_a_citation_and_a_cost(name: str) -> None:
    doc = declaration(name).doc
    first, blank, *_ = doc.splitlines()
    assert first.endswith("."), "the first line is one sentence"
    assert not blank, "a blank line follows the first"
    *text, cost = blocks(doc)
    assert cost.text.startswith("Cost: "), "the last paragraph begins with 'Cost: '"
    prose = " ".join(block.text for block in text)
    assert re.search(r"[A-Z]\w+ (et al\.|& [A-Z])", prose), "name the authors"
    chapter = Chapter.of(name)
    assert re.fullmatch(r"[A-Z][\w&. -]* (19|20)\d\d", chapter.venue), "name the venue and the year"
    assert chapter.cost.endswith(".")
    assert not any("Cost:" in block.text for block in chapter.text)


@every_model
def test_a_chapter_has_every_hyperparameter_once(name: str) -> None:
    chapter, params = Chapter.of(name), declaration(name).params
    everything = (*chapter.own, *chapter.shared, *chapter.facts)
    rows = {row.name: row for row in everything}
    assert len(rows) == len(everything)
    assert set(rows) == set(params.model_fields)
    assert {row.name for row in chapter.shared} <= set(Trained.model_fields)
    assert {row.name for row in chapter.facts} <= set(Trained.model_fields)
    space = load_space(None, name)
    sampled = {d.name: d.text for d in space.dimensions}
    for key, row in rows.items():
        if key in sampled:
            assert row.searched.startswith(sampled[key])
        else:
            assert row.searched.startswith("no, fixed at ") == (key in space.fixed)
            assert bool(row.searched) == (key in space.fixed)


# The page.


def test_the_page_on_models_is_what_the_code_says() -> None:
    written = (ROOT / "docs" / "models.md").read_text()
    assert written == handbook.page(), f"write it again: {handbook.COMMAND}"


@pytest.fixture(scope="module")
def page() -> str:
    return handbook.page()


@every_model
def test_the_page_has_the_model(name: str, page: str) -> None:
    assert page.count(f"\n## {name}\n") == 1
    (row,) = re.findall(rf"^\| \[{name}\]\(#{name}\) \|.*$", page, re.MULTILINE)
    assert handbook.escaped(declaration(name).summary) in row
    section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
    assert "\n**Cost.** " in section
    for field in declaration(name).params.model_fields:
        if field not in Trained.model_fields:
            assert section.count(f"\n| `{field}` |") == 1
    for fact in Chapter.of(name).facts:
        assert section.count(f"\n`{fact.name}` is always {fact.default}. ") == 1
        assert f"\n| `{fact.name}` |" not in section


def test_tables_of_the_page_are_whole(page: str) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()]
        assert len(set(cells)) == 1, table
    assert page.count("```") % 2 == 0
    assert not re.search(r"\n\n\n", page)


def test_what_is_common_stands_once_and_differences_stand_with_the_model(page: str) -> None:
    assert page.count("It seeds the initial weights, the order and dropout.") == 1
    duorec = page.split("\n## duorec\n")[1].split("\n## ")[0]
    size = "| `batch_size` | 256 (usually 128) | official code | 1 to 1,000,000 | 64, 128, 256 |"
    assert size in duorec
    mode = "| `train_mode` | prefixes (usually rows) | official code | rows \\| prefixes |"
    assert f"{mode} no, fixed at rows (declared: prefixes) |" in duorec
    assert "| `eval_every` |" not in duorec  # as everywhere, and not searched


def test_the_overview_says_how_models_train() -> None:
    assert chapters.samples("duorec") == ("prefixes", "rows")  # the default first
    assert chapters.samples("linrec") == ("prefixes", "rows")  # causal alone
    assert chapters.samples("bsarec") == ("prefixes",)  # rows would leak
    assert chapters.samples("gru4rec") == ("rows", "prefixes", "sessions")  # official alone
    assert chapters.losses("gsasrec")[0] == "gbce"
    assert chapters.losses("sasrec") == ("ce", "sampled_softmax", "bce", "bpr", "gbce")
    assert chapters.samples("bert4rec") == ("rows",)
    assert declaration("sasrec").is_trained
    assert not declaration("stan").is_trained


# Words.


def test_a_docstring_is_split_into_prose_points_and_formulas() -> None:
    doc = "First\nline.\n\n    a = 1\n      b\n\n    c = 2\n\nWith ``x\ny``\n- one\n  more\n- two"
    assert blocks(doc) == [
        Block("prose", "First line."),
        Block("formula", "a = 1\n  b\n\nc = 2"),
        Block("prose", "With ``x y``"),
        Block("point", "one more"),
        Block("point", "two"),
    ]
    assert blocks("Text\n    a = 1\nmore") == [
        Block("prose", "Text"),
        Block("formula", "a = 1"),
        Block("prose", "more"),
    ]


def test_long_formulas_hang_below_their_second_column() -> None:
    assert chapters.hung("h'   one two three four", 20) == "h'   one two three\n     four"
    assert chapters.hung("  a = 1 + 2 + 3 + 4 + 5", 20) == "  a = 1 + 2 + 3 + 4\n      + 5"
    assert chapters.hung("a = 1\n\nb = 2", 20) == "a = 1\n\nb = 2"


@pytest.mark.parametrize(
    ("doc", "venue", "link"),
    [
        (
            "Line 1999.\n\nQiu et al., Title, WSDM 2022, arXiv 2110.05730, see 1905.00001.",
            "WSDM 2022",
            "https://arxiv.org/abs/2110.05730",
        ),
        ("Line.\n\nHe & McAuley, ICDM\n2016.", "ICDM 2016", ""),
        ("Line.\n\nLi, 10.1145/3132847.3132926.", "", "https://doi.org/10.1145/3132847.3132926"),
        (
            "Line.\n\nA preprint, arXiv 2502.03417.",
            "arXiv 2025",
            "https://arxiv.org/abs/2502.03417",
        ),
    ],
)
def test_citations_are_found(doc: str, venue: str, link: str) -> None:
    assert chapters.venue(doc) == venue
    assert chapters.link(doc) == link


def test_markdown_shows_prose_as_it_is() -> None:
    assert handbook.escaped("a*b* h_s _x ``c_*|d`` <e> ~ |") == (
        r"a\*b\* h_s \_x `c_*\|d` \<e> \~ \|"
    )
    assert handbook.linked("arXiv 1808.09781, 10.1145/1.2.") == (
        "arXiv [1808.09781](https://arxiv.org/abs/1808.09781), "
        "[10.1145/1.2](https://doi.org/10.1145/1.2)."
    )


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Annotated[int, Field(ge=1, le=8192)], "1 to 8,192"),
        (Annotated[float, Field(ge=0, le=1e6)], "0 to 1,000,000"),
        (Annotated[float, Field(ge=0, lt=1)], "at least 0, below 1"),
        (Annotated[float, Field(gt=0.5)], "above 0.5"),
        (Literal["dot", "cos"], "dot | cos"),
        (bool, "true | false"),
        (Annotated[float | None, Field(gt=0)], "above 0 or null"),
        (str, ""),
    ],
)
def test_what_is_allowed_in_words(kind: Any, words: str) -> None:
    field = create_model("Some", x=(kind, ...)).model_fields["x"]
    assert chapters.allowed_values(field) == words
