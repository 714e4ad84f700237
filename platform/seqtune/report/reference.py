"""The page on all options: docs/options.md."""

from __future__ import annotations

from seqtune.options import (
    BenchOptions,
    Declared,
    PrepareOptions,
    RecommendOptions,
    StudyOptions,
    TrainOptions,
    declared,
)

OPTIONS = """\
# Options

This page is written from the declarations in `platform/seqtune/options.py`, by

```bash
python -m seqtune.report.reference > docs/options.md
```

so change those, not this page. [tune.md](tune.md) explains what they are for.
"""


def options_page() -> str:
    """Returns docs/options.md; a test compares the two."""
    commands = {
        "tune": StudyOptions,
        "train": TrainOptions,
        "recommend": RecommendOptions,
        "bench": BenchOptions,
        "data prepare": PrepareOptions,
    }
    lines = [OPTIONS]
    for name, options in commands.items():
        lines += [f"## seqtune {name}", "", "| option | default | meaning |", "|---|---|---|"]
        lines += [_option_row(one) for one in declared(options)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _option_row(one: Declared) -> str:
    flags = " ".join(f"`{name} {one.flag.metavar}`".replace(" `", "`") for name in one.names)
    default = one.flag.shown or ("" if one.default in (None, (), False) else f"`{one.default}`")
    return f"| {flags} | {default or ('needed' if one.required else '')} | {one.flag.text} |"


if __name__ == "__main__":
    print(options_page(), end="")
