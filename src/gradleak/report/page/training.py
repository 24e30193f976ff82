"""What noise costs a training, as a reader sees it: bound and measurement over the noise multiplier, and on the same axis the
noise that each goal asks for. A function of plain numbers; must not train or account for anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from rich.table import Table

from gradleak.report.page import svg

_EDGE = 0.03


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One noise level in words."""

    noise: str
    epsilon: str
    clip: str
    bound: str
    parts: str
    measured: str
    ratio: str
    excess: str
    own: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One goal: its place on the axis, and in words."""

    number: int
    text: str
    noise: str
    epsilon: str
    variance: str
    left: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Everything that the page says about the price of noise."""

    problem: str
    facts: str
    without_noise: str
    rows: tuple[Row, ...]
    goals: tuple[Target, ...]
    drawing: Markup
    marks: tuple[tuple[str, str], ...]
    heights: tuple[tuple[str, str], ...]


def section(cost: Mapping[str, Any], goals: Sequence[Mapping[str, Any]]) -> Section:
    """The panel.

    Args:
        cost: a ``TrainingCost`` as plain data. goals: prices of goals as plain data, possibly none.
    """
    levels = cost["levels"]
    noises = [level["noise_multiplier"] for level in levels]
    inside = [goal for goal in goals if min(noises) <= goal["noise_multiplier"] <= max(noises)]
    x = _scale(min(noises), max(noises))
    heights = [level["bound"]["total"] for level in levels] + [level["measured"] for level in levels]
    low, high = 10 ** math.floor(math.log10(min(heights))), 10 ** math.ceil(math.log10(max(heights)))
    y = _scale(low, high, edge=0.0)
    decades = [low * 10**k for k in range(round(math.log10(high / low)) + 1)]
    return Section(
        problem=str(cost["problem"]),
        facts=f"{cost['steps']} steps with batches of {cost['batch_size']}, δ = {cost['delta']:g}",
        without_noise=f"{cost['without_noise']:.3g}",
        rows=tuple(_row(level, cost["plan_multiplier"]) for level in levels),
        goals=tuple(_goal(number, goal, x) for number, goal in enumerate(inside, start=1)),
        drawing=svg.chain(
            lines=(
                *(("goal", [(x(g["noise_multiplier"]), 0.0), (x(g["noise_multiplier"]), 1.0)]) for g in inside),
                ("mechanism", [(x(each["noise_multiplier"]), y(each["bound"]["total"])) for each in levels]),
                ("best", [(x(each["noise_multiplier"]), y(each["measured"])) for each in levels]),
            ),
            band=(),
            dots=(),
            grid=[y(decade) for decade in decades],
            label=(
                f"Mean squared gradient norm over the noise multiplier from {noises[0]:g} to {noises[-1]:g}: bound "
                f"{levels[0]['bound']['total']:.2g} to {levels[-1]['bound']['total']:.2g}, measured "
                f"{levels[0]['measured']:.2g} to {levels[-1]['measured']:.2g}"
            ),
        ),
        marks=tuple((f"{z:.3g}", f"{100 * x(z):.2f}%") for z in noises),
        heights=tuple((f"{decade:.0e}", f"{100 * (1 - y(decade)):.2f}%") for decade in decades),
    )


def terminal_table(cost: Mapping[str, Any]) -> Table:
    """The noise levels as rows for a terminal."""
    table = Table(box=None, pad_edge=False)
    for column in (
        "noise",
        "ε",
        "clip",
        "bound",
        "start + batches + noise + clipping",
        "measured",
        "ratio",
        "excess loss",
    ):
        table.add_column(column, justify="right")
    for level in cost["levels"]:
        row = _row(level, cost["plan_multiplier"])
        style = "bold" if row.own else None
        table.add_row(
            row.noise, row.epsilon, row.clip, row.bound, row.parts, row.measured, row.ratio, row.excess, style=style
        )
    return table


def _row(level: Mapping[str, Any], own: float) -> Row:
    bound = level["bound"]
    return Row(
        noise=f"{level['noise_multiplier']:.3g}",
        epsilon="no guarantee" if level["epsilon"] is None else f"{level['epsilon']:.3g}",
        clip=f"{level['clip_norm']:.3g}, shortens {level['clipped']:.0%}",
        bound=f"{bound['total']:.3g}",
        parts=" + ".join(f"{bound[part]:.2g}" for part in ("start", "sampling", "noise", "bias")),
        measured=f"{level['measured']:.3g}",
        ratio=f"{bound['total'] / level['measured']:.2f}",
        excess=f"{level['excess']:.3g}",
        own=level["noise_multiplier"] == own,
    )


def _goal(number: int, goal: Mapping[str, Any], x: _Scale) -> Target:
    variance = goal["relative_variance"]
    return Target(
        number=number,
        text=str(goal["goal"]),
        noise=f"{goal['noise_multiplier']:.3g}",
        epsilon="no guarantee" if goal["epsilon"] is None else f"{goal['epsilon']:.3g}",
        variance="–" if variance is None else f"{variance:.3g}",
        left=f"{100 * x(goal['noise_multiplier']):.2f}%",
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """A logarithmic axis onto [edge, 1 - edge]."""

    low: float
    span: float
    edge: float

    def __call__(self, value: float) -> float:
        share = (math.log(value) - self.low) / self.span if self.span > 0 else 0.5
        return self.edge + (1 - 2 * self.edge) * share


def _scale(low: float, high: float, *, edge: float = _EDGE) -> _Scale:
    return _Scale(math.log(low), math.log(high / low), edge)
