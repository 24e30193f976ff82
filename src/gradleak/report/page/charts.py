"""Turns cells into the two charts of the page: defenses side by side, and how each search went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gradleak.core.record import Record
from gradleak.report.conclusions import phrasing
from gradleak.report.conclusions.pooling import (
    SEARCH_FAILED,
    UNBOUNDED,
    Cell,
    Pooled,
    above_guessing,
    groups,
    leading_metrics,
)
from gradleak.report.page import svg

POINTS_PER_CURVE = 60
DECADES = 6
"""Decades below the lowest curve beyond which a truth level is drawn at the edge: else one rounding error at 1e-30
would flatten every curve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    attack: str
    strip: Markup | None
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    defense: str
    note: str
    claim: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DotPlot:
    metric: str
    meaning: str
    axis: Markup
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    text: str
    top: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    attack: str
    defense: str
    note: str
    drawing: Markup
    ticks: tuple[Tick, ...]
    span: str
    remark: str


def comparison(found: Sequence[Cell]) -> tuple[DotPlot, ...]:
    """One dot plot for the leading metric and one for the next."""
    names = leading_metrics(found) if found else ()
    return tuple(_dot_plot(found, name) for name in names if any(name in cell.scores for cell in found))


def _dot_plot(found: Sequence[Cell], metric: str) -> DotPlot:
    scored = [cell.scores[metric] for cell in found if metric in cell.scores]
    top = svg.nice_top(max(max(score.value, score.high) for score in scored)) if metric in UNBOUNDED else 1.0
    fraction = metric not in UNBOUNDED and metric != "ssim"
    labels = [f"{25 * i}%" if fraction else f"{top * i / 4:g}" for i in range(5)]
    return DotPlot(
        metric=metric,
        meaning=phrasing.METRICS.get(metric, ""),
        axis=svg.axis(labels),
        blocks=tuple(
            Block(
                defense=members[0].defense,
                note=context(members[0], found),
                claim=phrasing.guarantee(members[0].records[0].privacy),
                rows=tuple(_row(cell, metric, top) for cell in members),
            )
            for members in groups(found).values()
        ),
    )


def context(cell: Cell, found: Sequence[Cell]) -> str:
    """Scenario and adversary of a cell, where the run holds several."""
    several = len({other.threat for other in found}) > 1
    return ", ".join(part for part in (cell.scenario, phrasing.adversary(cell.threat) if several else "") if part)


def _row(cell: Cell, metric: str, top: float) -> Row:
    score = cell.scores.get(metric)
    if score is None:
        return Row(
            attack=cell.attack, strip=None, text="does not apply" if cell.scores else phrasing.statuses(cell.statuses)
        )
    baseline = cell.baseline.get(metric)
    return Row(
        attack=cell.attack,
        strip=svg.strip(
            value=score.value / top,
            low=score.low / top,
            high=score.high / top,
            prior=None if baseline is None else baseline.value / top,
            strong=above_guessing(cell, metric),
            failed=not cell.tested(),
            label=_label(cell, metric, score, baseline),
        ),
        text=phrasing.number(metric, score.value),
    )


def _label(cell: Cell, metric: str, score: Pooled, baseline: Pooled | None) -> str:
    prior = "" if baseline is None else f", prior-only {phrasing.number(metric, baseline.value)}"
    return (
        f"{cell.attack} against {phrasing.defense(cell.defense)}: {metric} {phrasing.number(metric, score.value)}, "
        f"95% interval {phrasing.interval(metric, score)}{prior}"
    )


def convergence(found: Sequence[Cell]) -> tuple[Panel, ...]:
    """One panel per cell whose attack minimizes an objective, one line per repeat."""
    return tuple(_panel(cell, context(cell, found)) for cell in found if any(_trace(r) for r in cell.records))


def _trace(record: Record) -> list[svg.Point]:
    return [(float(x), float(y)) for x, y in record.status.get("trace") or () if math.isfinite(y)]


def _panel(cell: Cell, note: str) -> Panel:
    lines = [line for line in map(_trace, cell.records) if line]
    truths = [truth for r in cell.records if (truth := r.status.get("objective_at_truth")) is not None]
    values = [y for line in lines for _, y in line]
    scale = _Scale.fit(values, truths)
    last = max(line[-1][0] for line in lines) or 1.0
    lines = [line if len(line) > 1 else [(0.0, line[0][1]), (last, line[0][1])] for line in lines]
    drawn = [[(x / last, scale.height(y)) for x, y in svg.thin(line, POINTS_PER_CURVE)] for line in lines]
    levels = dict.fromkeys(round(scale.height(truth), 3) for truth in truths)
    ticks = scale.ticks()
    return Panel(
        attack=cell.attack,
        defense=cell.defense,
        note=note,
        drawing=svg.curves(
            lines=drawn,
            levels=levels,
            grid=[scale.height(tick) for tick in ticks],
            label=f"Objective of {cell.attack} against {phrasing.defense(cell.defense)} over {phrasing.count(round(last), 'iteration')}",
        ),
        ticks=tuple(Tick(text=f"{tick:.2g}", top=f"{100 * (1 - scale.height(tick)):.1f}%") for tick in ticks),
        span=phrasing.count(round(last), "iteration"),
        remark=_remark(cell, scale, truths),
    )


def _remark(cell: Cell, scale: _Scale, truths: Sequence[float]) -> str:
    failed = cell.flags.get(SEARCH_FAILED, 0)
    if failed:
        return f"Stopped above the truth in {failed} of {len(cell.records)}: the search failed."
    if not truths:
        return "The objective at the truth was not computed."
    below = [truth for truth in truths if scale.below(truth)]
    return f"The truth lies below the axis, at {min(below):.0e}." if below else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scale:
    """The vertical scale: logarithmic if every curve is positive, else linear."""

    low: float
    high: float
    log: bool

    @staticmethod
    def fit(values: Sequence[float], truths: Sequence[float]) -> _Scale:
        bottom, top = min(values), max(values)
        if bottom <= 0:
            return _Scale(low=min(bottom, *truths, bottom), high=max(top, *truths, top), log=False)
        floor = math.log10(bottom) - DECADES
        near = [math.log10(truth) for truth in truths if truth > 0 and math.log10(truth) >= floor]
        low, high = min([math.log10(bottom), *near]), max([math.log10(top), *near])
        return _Scale(low=low - 0.08 * (high - low + 0.2), high=high + 0.05 * (high - low + 0.2), log=True)

    def height(self, value: float) -> float:
        if self.log:
            value = math.log10(value) if value > 0 else -math.inf
        span = self.high - self.low
        return min(max((value - self.low) / span, 0.0), 1.0) if span > 0 else 0.5

    def below(self, value: float) -> bool:
        return self.log and (value <= 0 or math.log10(value) < self.low)

    def ticks(self) -> list[float]:
        if not self.log:
            return [self.low, (self.low + self.high) / 2, self.high]
        first, last = math.ceil(self.low), math.floor(self.high)
        if last < first:
            return [10 ** ((self.low + self.high) / 2)]
        step = max(1, -(-(last - first) // 4))
        return [10.0**power for power in range(first, last + 1, step)]
