"""What moved between two results of one script. Must not know what the numbers mean: it says how far each went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.common.page import Value, numbers

Row = Sequence[Value]


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines of text: tables and rows that came or went, and every number that is another one.

    Args:
        old, new: two results as ``run.record`` writes them.

    Returns:
        Nothing where both print the same; else one line per difference, numbers with their relative change.
    """
    lines: list[str] = []
    before, after = _tables(old), _tables(new)
    lines += [f"gone: table {name}" for name in before if name not in after]
    for name, table in after.items():
        if name not in before:
            lines.append(f"added: table {name}")
        else:
            lines += _table(name, before[name], table)
    return [*lines, *_text(old["lines"], new["lines"])]


def _tables(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """By title and place among the tables of that title."""
    seen: Counter[str] = Counter()
    named = {}
    for table in result["tables"]:
        title = table["title"] or "(untitled)"
        seen[title] += 1
        named[title if seen[title] == 1 else f"{title} ({seen[title]})"] = table
    return named


def _table(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if old["columns"] != new["columns"]:
        yield f"{name}: columns were {' | '.join(old['columns'])}, are {' | '.join(new['columns'])}"
        return
    before, after = _by_key(old["rows"], new["rows"])
    for key in before:
        if key not in after:
            yield f"{name}: gone: {_shown(before[key])}"
    for key, row in after.items():
        if key not in before:
            yield f"{name}: added: {_shown(row)}"
            continue
        for column, was, now in zip(new["columns"], before[key], row, strict=False):
            if was != now:
                yield f"{name}: {key[0]}: {column}: {_change(was, now)}"


Key = tuple[str, int]


def _by_key(old: Sequence[Row], new: Sequence[Row]) -> tuple[dict[Key, Row], dict[Key, Row]]:
    """Both tables by what names a row: its fewest leading cells that differ from row to row in both.

    Where those are cells that were measured, so that most rows would have no partner, or where rows repeat, the first cell and
    the place among the rows that share it name the row.
    """
    columns = min((len(row) for row in (*old, *new)), default=0)
    for width in range(1, columns + 1):
        names = [[_name(row, width) for row in rows] for rows in (old, new)]
        if all(len(set(part)) == len(part) for part in names):
            if 2 * len(set(names[0]) & set(names[1])) >= min(len(old), len(new)):
                return _keyed(old, width), _keyed(new, width)
            break
    return _keyed(old, 1), _keyed(new, 1)


def _keyed(rows: Sequence[Row], width: int) -> dict[Key, Row]:
    seen: Counter[str] = Counter()
    keyed: dict[Key, Row] = {}
    for row in rows:
        name = _name(row, width)
        keyed[name, seen[name]] = row
        seen[name] += 1
    return keyed


def _name(row: Row, width: int) -> str:
    return ", ".join(str(cell) for cell in row[:width])


def _shown(row: Row) -> str:
    return " | ".join(str(cell) for cell in row)


def _change(was: Value, now: Value) -> str:
    """Both values, and the relative change of every number that is another one, if the words between are the same."""
    text = f"{was} → {now}"
    (frame, before), (other, after) = numbers(str(was)), numbers(str(now))
    if frame != other:
        return text
    moved = [_relative(x, y) for x, y in zip(before, after, strict=True) if x != y]
    return f"{text} ({', '.join(moved)})" if moved else text


def _relative(was: float, now: float) -> str:
    return "from zero" if was == 0 else f"{(now - was) / abs(was):+.3%}"


def _text(old: Sequence[str], new: Sequence[str]) -> Iterator[str]:
    """The lines outside tables: paired by their words, so that only numbers can differ in a pair."""
    before, after = (
        {k: row[1] for k, row in _keyed([(numbers(s)[0], s) for s in part], 1).items()} for part in (old, new)
    )
    for key, line in before.items():
        if key not in after:
            yield f"text: gone: {line}"
    for key, line in after.items():
        if key not in before:
            yield f"text: added: {line}"
        elif before[key] != line:
            yield f"text: {_change(before[key], line)}"
