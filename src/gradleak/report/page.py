"""Why: puts the sections of a run into one HTML file that needs no network. The page is a function of the run folder
and of ``reveal``: no clock, no randomness, no machine.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from gradleak.report import charts, sections, words
from gradleak.report.evidence import RECORDS_PER_CELL, Budget, Exhibit, exhibit
from gradleak.report.source import Run, read
from gradleak.report.summary import Cell, cells, groups, headline_metric, leaking_metric, strength
from gradleak.report.verdict import verdict

PANELS_SHOWN = 6
"""Convergence panels before the rest is folded away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """The evidence of one cell with its caption."""

    attack: str
    caption: str
    leak: bool
    exhibit: Exhibit


@dataclass(frozen=True, kw_only=True, slots=True)
class Wall:
    """The evidence of one defense, the attack that recovered most first."""

    defense: str
    note: str
    shown: tuple[Shown, ...]


def build(run: Path, *, reveal: bool = False) -> str:
    """The report of a run folder as one HTML file.

    Args:
        run: folder with ``plan.json``, ``records.jsonl`` and ``tensors/``.
        reveal: show private tokens and images; otherwise bars of three widths and empty frames.

    Raises:
        DataError: if the folder holds no run, or a file of it cannot be read.
    """
    source = read(Path(run))
    found = cells(source.records)
    return _environment().get_template("page.html.j2").render(_context(source, found, reveal=reveal))


def write(run: Path, *, reveal: bool = False) -> Path:
    """Writes ``report.html`` into the run folder, whole or not at all, and returns its path. Raises as ``build``."""
    target = Path(run) / "report.html"
    text = build(run, reveal=reveal)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".report-", suffix=".html")
    partial = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _context(source: Run, found: Sequence[Cell], *, reveal: bool) -> dict[str, Any]:
    return {
        "style": Markup(_style()),
        "reveal": reveal,
        "verdict": verdict(source.records),
        "modality": found[0].modality if found else "text",
        "models": list(dict.fromkeys(str(cell.records[0].scenario.get("model", "")) for cell in found)),
        "scenario": sections.scenario(found),
        "adversaries": sections.adversaries(found),
        "table": sections.score_table(found) if found else None,
        "flags": sections.flag_legend(found),
        "plots": charts.comparison(found),
        "walls": _walls(source.path, found, reveal=reveal),
        "records_per_cell": RECORDS_PER_CELL,
        "panels": charts.convergence(found),
        "panels_shown": PANELS_SHOWN,
        "command": _command(source.plan),
        "reproduction": sections.reproduction(source.plan, source.records),
        "plan": sections.plan_text(source.plan),
        "untried": sections.untried(source.plan, found),
        "cell_count": len(found),
    }


def _walls(run: Path, found: Sequence[Cell], *, reveal: bool) -> tuple[Wall, ...]:
    """Evidence of every defense. The best attack of each defense is served first, so that space never hides a leak."""
    budget = Budget()
    ranked = {group: sorted(members, key=strength, reverse=True) for group, members in groups(found).items()}
    exhibits: dict[int, Exhibit] = {}
    for place in range(max((len(members) for members in ranked.values()), default=0)):
        for members in ranked.values():
            if place < len(members):
                exhibits[id(members[place])] = exhibit(run, members[place], reveal=reveal, budget=budget)
    walls = [
        Wall(
            defense=members[0].defense,
            note=charts.context(members[0], found),
            shown=tuple(_shown(cell, exhibits[id(cell)], found) for cell in members if exhibits[id(cell)].total),
        )
        for members in ranked.values()
    ]
    return tuple(wall for wall in walls if wall.shown)


def _shown(cell: Cell, evidence: Exhibit, found: Sequence[Cell]) -> Shown:
    metric = leaking_metric(cell) or headline_metric(found)
    score = cell.scores.get(metric)
    value = words.statuses(cell.statuses) if score is None else f"{metric} {words.number(metric, score.value)}"
    return Shown(attack=cell.attack, caption=value, leak=leaking_metric(cell) is not None, exhibit=evidence)


def _command(plan: Mapping[str, Any]) -> str:
    command = plan.get("command")
    return " ".join(map(str, command)) if isinstance(command, list) else str(command or "")


def _style() -> str:
    return resources.files("gradleak.report").joinpath("templates", "style.css").read_text(encoding="utf-8")


def _breakable(text: str) -> Markup:
    """A long name that may break after an underscore, a plus or a comma."""
    result = escape(text)
    for mark in ("_", "+", ", "):
        result = Markup(str(result).replace(mark, f"{mark}<wbr>"))
    return result


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gradleak.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = _breakable
    return environment
