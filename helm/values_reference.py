"""Write docs/chart-values.md from the comments in values.yaml: python -m helm.values_reference"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
VALUES = ROOT / "helm" / "steno" / "values.yaml"
REFERENCE = ROOT / "docs" / "chart-values.md"
HEAD = """\
# The chart's values

Made from `helm/steno/values.yaml` by `python -m helm.values_reference`; a test holds that it is
current. [deployment.md](deployment.md) tells how they are used.

| value | default | |
|---|---|---|
"""


@dataclass(frozen=True)
class Entry:
    """One documented value: its dotted path, its default, and what it is for."""

    path: str
    default: Any
    text: str


def entries(text: str) -> list[Entry]:
    """Return the values of a commented values.yaml in its order.

    A comment `# -- …` documents the key below it, with all that is in it.

    Raises:
        ValueError: a value has no comment.
    """
    found: list[Entry] = []
    values = yaml.safe_load(text)
    path: list[tuple[int, str]] = []
    comment = ""
    covered_from: int | None = None  # the indent of a documented map, whose keys need no comment
    for line in text.splitlines():
        if match := re.fullmatch(r"\s*# -- (.*)", line):
            comment = match[1]
        elif match := re.fullmatch(r"(\s*)([A-Za-z][\w-]*):(.*)", line):
            indent = len(match[1])
            if covered_from is not None and indent > covered_from:
                continue
            covered_from = None
            path = [*((depth, name) for depth, name in path if depth < indent), (indent, match[2])]
            names = [name for _, name in path]
            if comment:
                found.append(Entry(".".join(names), _at(values, names), comment))
                comment, covered_from = "", indent
            elif match[3].strip():
                raise ValueError(f"{'.'.join(names)} has no comment `# -- …` above it")
    return found


def document(text: str) -> str:
    """Return the reference, in Markdown, for a commented values.yaml."""
    rows = [
        f"| `{entry.path}` | `{json.dumps(entry.default)}` | {entry.text} |\n"
        for entry in entries(text)
    ]
    return HEAD + "".join(rows)


def _at(values: Any, names: list[str]) -> Any:
    for name in names:
        values = values[name]
    return values


if __name__ == "__main__":
    REFERENCE.write_text(document(VALUES.read_text(encoding="utf-8")), encoding="utf-8")
    print(REFERENCE)
