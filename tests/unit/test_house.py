"""The rules of the house: who may import whom, what may lie where, examples that work."""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "platform" / "seqtune"

# The one map of the house: a room imports its own floor and those below it; a new file needs its
# place in docs/architecture.md.
PAGE = (ROOT / "docs" / "architecture.md").read_text()
MAP = re.search(r"^```text floors\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
assert MAP is not None
FLOORS = {int(line.split()[0]): line.split()[1:] for line in MAP[1].splitlines()}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}

# Heavy libraries stay in the rooms that exist for them.
TENANTS = {
    "mlflow": {"track", "serving"},
    "ray": {"cluster", "machines", "study"},
    "optuna": {"space", "report", "study"},
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every import of a file, also those inside functions: line, dotted name."""
    package = ("seqtune", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            for alias in node.names:
                # `from seqtune import nn` names a room only together with its last word.
                parts = (*start, *filter(None, [node.module]), alias.name)
                yield node.lineno, ".".join(parts)


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in MODULES} - {"__init__", "__main__"}
    assert rooms, f"no modules under {PACKAGE}"
    assert rooms == FLOOR.keys(), "give the new rooms a floor in docs/architecture.md"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_lower_rooms_never_import_higher_ones(path: Path) -> None:
    floor = FLOOR.get(room_of(path), max(FLOORS))
    above = [
        f"{path.relative_to(ROOT)}:{line} is on floor {floor} and imports {name} ({FLOOR[room]})"
        for line, name in imports(path)
        if name.startswith("seqtune.")
        and (room := name.split(".")[1]) in FLOOR
        and FLOOR[room] > floor
    ]
    assert not above


@pytest.mark.parametrize("library", TENANTS)
def test_heavy_libraries_stay_in_their_rooms(library: str) -> None:
    outside = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in MODULES
        for line, name in imports(path)
        if name.split(".")[0] == library and room_of(path) not in TENANTS[library]
    ]
    assert not outside


def test_only_one_room_starts_ray() -> None:
    starts = [p.name for p in MODULES if re.search(r"^\s+ray\.init\(", p.read_text(), re.MULTILINE)]
    assert starts == ["cluster.py"]


def test_the_command_line_starts_without_heavy_libraries() -> None:
    heavy = ("torch", "ray", "mlflow", "optuna", "pandas", "pyarrow", "scipy", "plotly")
    code = f"import sys, seqtune.cli; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_no_source_root_is_a_package() -> None:
    """`platform` and `tests` as packages would shadow modules of the standard library."""
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "tests" / "platform").exists()
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_no_module_bears_a_name_of_the_standard_library() -> None:
    modules = {path.stem for path in MODULES} | {path.parent.name for path in MODULES}
    assert modules & sys.stdlib_module_names == set()


def test_every_model_has_a_search_space_and_every_space_a_model() -> None:
    models = {p.stem for p in (PACKAGE / "models").glob("*.py") if not p.stem.startswith("_")}
    spaces = {path.stem for path in (ROOT / "search_spaces").glob("*.yaml")}
    assert spaces == models


def test_the_wings_have_no_crowded_rooms() -> None:
    lines = {
        str(path.relative_to(PACKAGE)): len(path.read_text().splitlines())
        for path in MODULES
        if room_of(path) in ("study", "cli", "report", "space")
    }
    assert len(lines) > 30
    assert {name: count for name, count in lines.items() if count > 350} == {}


def test_functions_fit_a_screen() -> None:
    """The training loop alone is longer: it stays one visible function."""
    long = {
        f"{path.relative_to(PACKAGE)}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    }
    assert long.keys() == {"train.py:_train"}, long


def test_model_files_stay_short() -> None:
    """About a hundred lines below the docstring, which may be as long, and the imports."""
    lines = {}
    for path in (PACKAGE / "models").glob("[!_]*.py"):
        source = path.read_text()
        head = [n for n in ast.parse(source).body if isinstance(n, ast.ImportFrom | ast.Import)]
        lines[path.name] = len(source.splitlines()) - (head[-1].end_lineno or 0)
    assert "sasrec.py" in lines
    long = {name: count for name, count in lines.items() if count > 120}
    assert not long, "what two models share belongs in nn.py or losses.py"


def test_models_stay_on_their_device() -> None:
    """A training step fetches nothing: that would make a GPU wait, and loop over samples."""
    step = [
        *(PACKAGE / "models").glob("*.py"),
        *(PACKAGE / f"{n}.py" for n in ("nn", "losses", "negatives")),
    ]
    assert len(step) > 3
    fetch = re.compile(r"\.(cpu|numpy|item|tolist)\(\)")
    assert {path.name: fetch.findall(path.read_text()) for path in step} == {
        path.name: [] for path in step
    }


@functools.cache
def repository_files() -> tuple[Path, ...]:
    """What is in the repository, or would be with the next commit."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = (ROOT / name for name in listed.split("\0") if name)
    return tuple(path for path in paths if path.is_file())


def test_no_file_is_large() -> None:
    sizes = {str(p.relative_to(ROOT)): p.stat().st_size for p in repository_files()}
    assert "pyproject.toml" in sizes
    assert {name: size for name, size in sizes.items() if size > 1_000_000} == {}


def test_no_file_names_this_machine_or_a_package_registry() -> None:
    hosts = (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("deb", "debian", "org"))
    registry = "|".join(r"\.".join(parts) for parts in (*hosts, ("download", "pytorch", "org")))
    private = re.compile(rf"(?<![\w.}}-])/(?:work|root|home)/|\b(?:{registry})\b")
    found = []
    for path in repository_files():
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode(errors="replace").splitlines(), start=1):
            if private.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found


def test_constraints_pin_what_the_project_asks_for() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {plain(re.split(r"[\[<>=!~ ]", line)[0]) for line in asked}
    assert names - {plain(pin.split("==")[0]) for pin in pins} == set()


def plain(distribution: str) -> str:
    """The name as installers compare it: PyYAML is pyyaml, types_PyYAML is types-pyyaml."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_the_readme_opens_with_the_two_commands_and_ci_runs_the_second() -> None:
    commands = list(shell_commands(ROOT / "README.md"))
    assert "pip install -c constraints.txt -e . && python tune.py --model duorec" in commands
    tests = "pip install -c constraints.txt -e '.[dev]' && pytest"
    assert tests in commands
    assert tests.split(" && ")[0] in (ROOT / ".ci" / "run").read_text()


PAGES = sorted(
    page
    for folder in ("", "docs", "docs/decisions", "docs/log", "cluster", "search_spaces")
    for page in (ROOT / folder).glob("*.md")
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_pages_are_understood(page: Path) -> None:
    calls = [words for line in shell_commands(page) for words in our_calls(line)]
    assert {shlex.join(words): wrong for words in calls if (wrong := mistake_in(words))} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_on_pages_lead_somewhere(page: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        place, _, part = link.partition("#")
        if place.startswith("http"):
            continue
        target = page if not place else page.parent / place
        if not target.exists() or (part and part not in parts(target)):
            lost.append(link)
    assert not lost


def parts(page: Path) -> set[str]:
    """The names by which links reach the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_citation_has_the_version_of_the_package() -> None:
    from seqtune import __version__

    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {__version__}" in lines
    assert (PACKAGE / "py.typed").exists()  # the wheel takes the whole folder of the package


def shell_commands(page: Path) -> Iterator[str]:
    """The lines of a page's ```bash blocks, continued lines joined."""
    fence = re.compile(r"^ *```(?:bash|sh|shell)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
    for block in fence.findall(page.read_text()):
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
            if command := line.strip().removeprefix("$ "):
                yield command


def our_calls(line: str) -> Iterator[list[str]]:
    """The calls of seqtune in a line of shell, as words: after &&, VAR=value or `ray ... --`."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    for at, word in enumerate(words):
        before = words[at - 1] if at else "&&"
        begins = before in ("&&", "||", ";", "|", "&", "(", "--") or "=" in before
        if begins and (word == "seqtune" or words[at : at + 2] == ["python", "tune.py"]):
            ends = (end for end in range(at, len(words)) if set(words[end]) <= set("&|;<>()"))
            yield words[at : next(ends, len(words))]


def mistake_in(words: list[str]) -> str | None:
    """Parses a call of seqtune as the command line would, without running it."""
    import typer
    from typer.exceptions import TyperException

    from seqtune.catalogue import check_models, declaration
    from seqtune.cli.app import app
    from seqtune.cli.mistakes import usage_sentence
    from seqtune.errors import UserError
    from seqtune.params import check, parse_assignment

    group: Any = typer.main.get_command(app)
    # `python tune.py` is the command `seqtune tune`.
    name, *rest = ["tune", *words[2:]] if words[0] == "python" else words[1:] or ["--help"]
    if name in group.commands:
        command = group.commands[name]
    elif name.startswith("-"):
        command, rest = group, [name, *rest]
    else:
        return f"no command {name}; there are: {', '.join(group.commands)}"
    try:
        given = command.make_context(name, rest).params
        for model in check_models(given["model"]) if given.get("model") else ():
            for assignment in given.get("set", ()):
                check(declaration(model).params, *parse_assignment(assignment), place="--set")
    except TyperException as error:
        return usage_sentence(error)
    except UserError as error:
        return str(error)
    except typer.Exit:  # --help, --version
        pass
    return None


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("pip install -e . && python tune.py --model sasrec --trials 3", None),
        ("RAY_ADDRESS=auto python tune.py --list", None),
        ("ray job submit --working-dir . -- python tune.py --model sasrec", None),
        ("seqtune --help", None),
        ("python tune.py --modle sasrec", "did you mean '--model'"),
        ("python tune.py --model sasrec --trials many", "must be a valid integer"),
        ("ray job submit -- python tune.py --model sasrc", "did you mean 'sasrec'"),
        ("python tune.py --model sasrec --set n_layer=3 | tee log", "did you mean 'n_layers'"),
        ("pip install . && seqtune tun --model sasrec", "no command tun"),
        ("seqtune tune sasrec", "stands alone"),
    ],
)
def test_a_wrong_command_on_a_page_is_noticed(line: str, mistake: str | None) -> None:
    (words,) = our_calls(line)
    found = mistake_in(words)
    assert found is None if mistake is None else mistake in (found or "")
