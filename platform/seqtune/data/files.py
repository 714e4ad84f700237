"""Which files hold interactions, and what is said where there is none."""

from __future__ import annotations

import difflib
from pathlib import Path

from seqtune.errors import UserError

TEXT = (".csv", ".tsv", ".txt", ".dat", ".data", ".inter")
PARQUET = (".parquet", ".pq")
SHOWN = 8  # names of files in a message
KINDS = f"{', '.join(TEXT)} (each also .gz) and {', '.join(PARQUET)}"


def find(source: str) -> Path:
    """Returns the path of an existing, readable kind of file, or raises a UserError."""
    place = f"--data {source}"
    if "://" in source:
        raise UserError(f"{place}: only local files are read; copy it to this machine first")
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(_missing(path, place))
    if not kind(path):
        raise UserError(
            f"{place}: unknown kind of file {path.suffix!r}, known are {KINDS}; write it as one of "
            "them, for example with pandas: frame.to_parquet('data.parquet')"
        )
    return path


def kind(path: Path) -> str:
    """Returns the extension that says how to read a file, or nothing where none is known."""
    *_, last = ["", *path.suffixes[-2:]]
    if last.lower() == ".gz":
        inner = path.with_suffix("").suffix.lower()
        return inner if inner in TEXT else ""
    return last.lower() if last.lower() in (*TEXT, *PARQUET) else ""


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
