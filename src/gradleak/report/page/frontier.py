"""The chart of leakage against accuracy and the table under it, for the page. Must not compute either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from gradleak.core.record import Record
from gradleak.harness.utility.frontier import read_trained
from gradleak.report.conclusions.frontier import Point, Row, Sweep, place_of, read_sweep, rows
from gradleak.report.page import losses, svg

_WIDE, _TALL = 0.06, 0.06
"""About the size of a label in the chart, in units of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    text: str
    left: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Everything that the page says about a frontier."""

    sweep: Sweep
    rows: tuple[Row, ...]
    drawing: Markup
    labels: tuple[tuple[str, str, str], ...]
    ticks: tuple[Mark, ...]
    losses: tuple[losses.LossPanel, ...]


def section(run: Path, records: Sequence[Record]) -> Section | None:
    """The frontier of a run folder for its page; None if it holds none."""
    sweep = read_sweep(run, records)
    if sweep is None:
        return None
    placed = [(point, at) for point in sweep.points if (at := place_of(point)) is not None]
    line = sorted((accuracy, leakage) for point, (leakage, accuracy) in placed if point.front)
    drawing = svg.frontier(
        line=line,
        crosses=[_cross(point) for point, _ in placed],
        guessing=sweep.points[0].guessing,
        grid=(0.0, 0.25, 0.5, 0.75, 1.0),
        label=f"{len(placed)} settings by accuracy and leakage; {len(line)} of them on the front",
    )
    return Section(
        sweep=sweep,
        rows=rows(sweep),
        drawing=drawing,
        labels=_labels(
            [(point.knob or "none", accuracy, 1 - max(leakage, 0.0)) for point, (leakage, accuracy) in placed]
        ),
        ticks=tuple(Mark(text=f"{25 * i}%", left=f"{25 * i}%") for i in range(5)),
        losses=losses.panels([(_label(point), point.defense) for point in sweep.points], read_trained(run)),
    )


def _labels(placed: Sequence[tuple[str, float, float]]) -> tuple[tuple[str, str, str], ...]:
    """Texts with their distances from the left and the top; one that would lie on another moves down."""
    taken: list[tuple[float, float]] = []
    for _, left, top in placed:
        while any(abs(left - other) < _WIDE and abs(top - high) < _TALL for other, high in taken):
            top += _TALL
        taken.append((left, top))
    texts = [text for text, _, _ in placed]
    return tuple((t, f"{100 * x:.2f}%", f"{100 * y:.2f}%") for t, (x, y) in zip(texts, taken, strict=True))


def _label(point: Point) -> str:
    return "no defense" if point.knob is None else f"knob {point.knob}"


def _cross(point: Point) -> svg.Cross:
    if point.leakage is None or point.accuracy is None:
        raise ValueError("Only points with leakage and accuracy are drawn.")
    accuracy, leakage = point.accuracy, point.leakage
    across = (
        accuracy.value if accuracy.low is None else accuracy.low,
        accuracy.value if accuracy.high is None else accuracy.high,
    )
    return svg.Cross(
        x=accuracy.value,
        y=max(leakage.value, point.guessing or 0.0),
        across=across,
        along=(leakage.low, leakage.high),
        strong=point.front,
    )
