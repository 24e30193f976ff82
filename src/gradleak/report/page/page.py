"""Puts the sections of a run into one HTML file that needs no network. The page is a function of the run folder
and of ``reveal``: no clock, no randomness, no machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from gradleak.core.record import Record
from gradleak.harness.bounds.store import read_bounds
from gradleak.harness.request.plan import Plan
from gradleak.harness.running.store import read_plan, read_records, write_atomically
from gradleak.report.conclusions import phrasing
from gradleak.report.conclusions.frontier import read_sweep
from gradleak.report.conclusions.pooling import Cell, cells, groups, headline_metric, leaking_metric, strength
from gradleak.report.conclusions.verdict import verdict
from gradleak.report.page import bounds, charts, frontier, sections, token_html, training
from gradleak.report.page.captured import is_captured, write_captured_page
from gradleak.report.page.evidence import RECORDS_PER_CELL, Budget, CellEvidence, cell_evidence

PANELS_SHOWN = 6
"""Convergence panels before the rest is folded away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedEvidence:
    """The evidence of one cell with its caption."""

    attack: str
    caption: str
    leak: bool
    exhibit: CellEvidence


@dataclass(frozen=True, kw_only=True, slots=True)
class DefenseEvidence:
    """The evidence of one defense, the attack that recovered most first."""

    defense: str
    note: str
    shown: tuple[CaptionedEvidence, ...]

    @property
    def claims(self) -> bool:
        """Whether some attack says how sure it is of its tokens."""
        return any(shown.exhibit.claims for shown in self.shown)


def build(run: Path, *, reveal: bool = False) -> str:
    """The report of a run folder as one HTML file.

    Args:
        run: folder with ``plan.json``, ``records.jsonl`` and ``tensors/``.
        reveal: show private tokens and images; otherwise bars of three widths and empty frames.

    Raises:
        DataError: if the folder holds no run, or a file of it cannot be read.
    """
    path = Path(run)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(_context(path, read_plan(path), read_records(path), reveal=reveal))
    )


def write(run: Path, *, reveal: bool = False) -> Path:
    """Writes ``report.html`` into the run folder, whole or not at all, and returns its path. Raises as ``build``.

    The folder is that of an audit, or of an attack on a captured update.
    """
    if is_captured(run):
        return write_captured_page(run, _environment().get_template("captured.html.j2"), _style(), reveal=reveal)
    target = Path(run) / "report.html"
    write_atomically(target, build(run, reveal=reveal).encode())
    return target


def write_bounds(run: Path) -> Path:
    """Shows the bounds of a folder: in the report of its audit, if it holds one, else on a page of their own.

    Raises:
        DataError: if a file of the folder cannot be read.
    """
    path = Path(run)
    if (path / "plan.json").is_file() and (path / "records.jsonl").is_file():
        return write(path)
    target = path / "bounds.html"
    found = bounds.sections(read_bounds(path))
    page = _environment().get_template("bounds.html.j2").render(style=Markup(_style()), bounds=found)
    write_atomically(target, page.encode())
    return target


def write_training(folder: Path, cost: Mapping[str, Any], goals: Sequence[Mapping[str, Any]]) -> Path:
    """Writes ``training.html``: what the noise of a plan costs a training. Returns its path."""
    target = Path(folder) / "training.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    page = _environment().get_template("training.html.j2")
    text = page.render(style=Markup(_style()), panel=training.section(cost, goals))
    write_atomically(target, text.encode())
    return target


def _context(run: Path, plan: Plan, records: Sequence[Record], *, reveal: bool) -> dict[str, Any]:
    found = cells(records)
    plain = plan.model_dump(mode="json")
    return {
        "style": Markup(_style()),
        "reveal": reveal,
        "verdict": verdict(records),
        "modality": found[0].modality if found else "text",
        "models": list(dict.fromkeys(str(cell.records[0].scenario.get("model", "")) for cell in found)),
        "scenario": sections.scenario(found),
        "adversaries": sections.adversaries(found),
        "table": sections.score_table(found),
        "flags": sections.flag_legend(found),
        "plots": charts.comparison(found),
        "frontier": frontier.section(run, records),
        "walls": _walls(run, found, reveal=reveal),
        "records_per_cell": RECORDS_PER_CELL,
        "bounds": bounds.sections(read_bounds(run), read_sweep(run, records)),
        "panels": charts.convergence(found),
        "panels_shown": PANELS_SHOWN,
        "command": plan.command or plan.command_line(),
        "reproduction": sections.reproduction(plain, records),
        "plan": sections.plan_text(plain),
        "untried": sections.untried(plain, found),
    }


def _walls(run: Path, found: Sequence[Cell], *, reveal: bool) -> tuple[DefenseEvidence, ...]:
    """Evidence of every defense. The best attack of each defense is served first, so that space never hides a leak."""
    budget = Budget()
    ranked = {group: sorted(members, key=strength, reverse=True) for group, members in groups(found).items()}
    exhibits: dict[int, CellEvidence] = {}
    for place in range(max((len(members) for members in ranked.values()), default=0)):
        for members in ranked.values():
            if place < len(members):
                exhibits[id(members[place])] = cell_evidence(run, members[place], reveal=reveal, budget=budget)
    walls = [
        DefenseEvidence(
            defense=members[0].defense,
            note=charts.context(members[0], found),
            shown=tuple(_shown(cell, exhibits[id(cell)], found) for cell in members if exhibits[id(cell)].total),
        )
        for members in ranked.values()
    ]
    return tuple(wall for wall in walls if wall.shown)


def _shown(cell: Cell, evidence: CellEvidence, found: Sequence[Cell]) -> CaptionedEvidence:
    metric = leaking_metric(cell) or headline_metric(found)
    score = cell.scores.get(metric)
    value = phrasing.statuses(cell.statuses) if score is None else f"{metric} {phrasing.number(metric, score.value)}"
    return CaptionedEvidence(attack=cell.attack, caption=value, leak=leaking_metric(cell) is not None, exhibit=evidence)


def _style() -> str:
    return resources.files("gradleak.report.page").joinpath("templates", "style.css").read_text(encoding="utf-8")


def _breakable(text: str) -> Markup:
    """A long name that may break after an underscore, a plus or a comma."""
    result = escape(text)
    for mark in ("_", "+", ", "):
        result = Markup(str(result).replace(mark, f"{mark}<wbr>"))
    return result


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gradleak.report.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(breakable=_breakable, chips=token_html.pair, bag=token_html.bag)
    return environment
