"""A printed page as data: the tables of its Markdown, with numbers as numbers, and the lines around them.

What is recorded is read from what was printed, so that the two cannot differ. Must not know any script.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

Value = int | float | str
_RULE = re.compile(r"\|?(\s*:?-{3,}:?\s*\|)+(\s*:?-{3,}:?\s*)?")
_NUMBER = re.compile(r"[+\-−]?(\d[\d,]*\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """One table.

    Attributes:
        title: the heading above it, empty where there is none.
        columns: its head, names may repeat.
        rows: one list of values per line, as long as ``columns`` or, in a broken line, shorter or longer.
    """

    title: str
    columns: list[str]
    rows: list[list[Value]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """All tables in their order, and all lines that belong to no table and are not empty."""

    tables: list[Table]
    lines: list[str]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "tables": [{"title": t.title, "columns": t.columns, "rows": t.rows} for t in self.tables],
            "lines": self.lines,
        }


def read_page(text: str) -> Page:
    """Splits Markdown into tables and other lines. A table starts where a line of dashes follows its head."""
    tables: list[Table] = []
    others: list[str] = []
    title, lines, inside = "", text.splitlines(), False
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if line.lstrip().startswith("|"):
            if not inside and _RULE.fullmatch(following.strip()):
                tables.append(Table(title=title, columns=_cells(line)))
                inside = True
                continue
            if inside:
                if not _RULE.fullmatch(line.strip()):
                    tables[-1].rows.append([value(cell) for cell in _cells(line)])
                continue
        inside = False
        if line.startswith("#"):
            title = line.lstrip("#").strip()
        elif line.strip():
            others.append(line.rstrip())
    return Page(tables=tables, lines=others)


def value(text: str) -> Value:
    """A number if the whole text is one (thousands may be set off by commas), else the text."""
    if not _NUMBER.fullmatch(text):
        return text
    plain = text.replace(",", "").replace("−", "-")
    return int(plain) if re.fullmatch(r"[+-]?\d+", plain) else float(plain)


def numbers(text: str) -> tuple[str, list[float]]:
    """The text with every number replaced by #, and the numbers in their order."""
    return _NUMBER.sub("#", text), [float(str(value(m[0])).replace("−", "-")) for m in _NUMBER.finditer(text)]


def _cells(line: str) -> list[str]:
    """What stands between the bars. A bar behind a backslash is part of its cell."""
    inner = line.strip().removeprefix("|").removesuffix("|")
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]
