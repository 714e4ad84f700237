"""Which files hold interactions, and what is said where there is none."""

from __future__ import annotations

import difflib
from pathlib import Path

from seqtune.errors import UserError

TEXT = (".csv", ".tsv", ".txt", ".dat", ".data", ".inter")
JSON = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet", ".pq")
SHOWN = 8  # names of files in a message
KINDS = f"{', '.join((*TEXT, *JSON))} (each also .gz) and {', '.join(PARQUET)}"


def find(source: str, option: str = "--data") -> Path:
    """Returns the path of an existing, readable kind of file, or raises a UserError."""
    place = f"{option} {source}"
    if "://" in source:
        raise UserError(f"{place}: is elsewhere; --data alone is fetched, so copy it here first")
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(_missing(path, place))
    if not kind(path):
        raise UserError(
            f"{place}: unknown kind of file {path.suffix!r}, known are {KINDS}; write it as one of "
            "them, for example with pandas: frame.to_parquet('data.parquet')"
        )
    return path


def find_all(source: str, option: str = "--data") -> list[Path]:
    """Returns the files that ``source`` names: a file, those of a folder, or of a pattern (``*``).

    Raises:
        UserError: there is none of a known kind, or their kinds differ.
    """
    path, place = Path(source).expanduser(), f"{option} {source}"
    if path.is_dir() and path.name:  # nobody means all that lies in "."
        found = sorted(one for one in path.iterdir() if one.is_file() and kind(one))
    elif any(sign in source for sign in "*?[") and not path.exists():
        matching = path.parent.glob(path.name) if path.parent.is_dir() else ()
        found = sorted(one for one in matching if one.is_file() and kind(one))
    else:
        return [find(source, option)]
    if not found:
        raise UserError(f"{place}: holds no file of a known kind; known are {KINDS}")
    if len(kinds := {kind(one) for one in found}) > 1:
        raise UserError(f"{place}: holds files of several kinds ({', '.join(sorted(kinds))})")
    return found


def kind(path: Path) -> str:
    """Returns the extension that says how to read a file, or nothing where none is known."""
    *_, last = ["", *path.suffixes[-2:]]
    if last.lower() == ".gz":
        inner = path.with_suffix("").suffix.lower()
        return inner if inner in (*TEXT, *JSON) else ""
    return last.lower() if last.lower() in (*TEXT, *JSON, *PARQUET) else ""


def _missing(path: Path, place: str) -> str:
    folder = path if path.is_dir() else path.parent
    if not folder.is_dir():
        return f"{place}: no such file, and no folder {folder}"
    what = "is a folder; name the file with the interactions" if path.is_dir() else "no such file"
    names = sorted(p.name for p in folder.iterdir() if kind(p) and p.is_file())
    if close := difflib.get_close_matches(path.name, names, n=1, cutoff=0.5):
        return f"{place}: {what}; did you mean {str(folder / close[0])!r}?"
    there = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{place}: {what}; {folder.resolve()} holds {there or 'no file of a known kind'}"
