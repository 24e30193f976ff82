"""Why: the sandwich as a reader sees it: one chart over the noise multiplier, and a table of the same numbers.
A function of stored numbers; must not compute a bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from rich.table import Table

from gradleak.report import svg

TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
EDGE = 0.03
"""Share of the width that is left free at both ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """One row of the table."""

    noise: str
    epsilon: str
    attack: str
    attack_interval: str
    best: str
    best_interval: str
    instance: str
    mechanism: str
    approximate: str
    bits: str
    verdict: str
    findings: tuple[str, ...]
    violated: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    text: str
    left: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Everything that the page says about one prior."""

    name: str
    secret: str
    facts: tuple[tuple[str, str], ...]
    drawing: Markup
    marks: tuple[Mark, ...]
    levels: tuple[Level, ...]
    measured: bool
    violated: bool
    confidence: str


def sections(found: Sequence[Mapping[str, Any]]) -> tuple[Section, ...]:
    """One section per prior."""
    return tuple(_section(plain) for plain in found)


def terminal_table(plain: Mapping[str, Any]) -> Table:
    """The chain as rows for a terminal."""
    table = Table(box=None, pad_edge=False)
    for column in (
        "noise",
        "ε",
        "attack",
        "best possible",
        "cap, this data",
        "cap, any data",
        "e^ε κ + δ",
        "bits leaked",
    ):
        table.add_column(column, justify="right")
    for step in plain["steps"]:
        level = _level(step, plain)
        table.add_row(
            level.noise,
            level.epsilon,
            f"{level.attack} {level.attack_interval}".strip(),
            f"{level.best} {level.best_interval}",
            level.instance,
            level.mechanism,
            level.approximate,
            level.bits,
        )
    return table


def percent(value: float) -> str:
    """A success rate with three digits, never rounded to certainty or to nothing."""
    scaled = 100 * value
    if 0 < scaled < 0.01:
        return "<0.01%"
    if 99.95 <= scaled < 100:
        return ">99.9%"
    return f"{scaled:.3g}%" if scaled < 10 else f"{scaled:.1f}%".replace(".0%", "%")


def _section(plain: Mapping[str, Any]) -> Section:
    prior, clip, settings = plain["prior"], plain["clip"], plain["settings"]
    quartiles = clip["norms"]
    facts = (
        ("model", str(plain["model"])),
        ("secret", str(prior["description"])),
        ("candidates", _candidates(prior)),
        ("guessing", f"κ = {percent(prior['kappa'])}: the best guess without a release"),
        ("view", f"{plain['view']}; {_releases(settings['releases'])}"),
        (
            "clip",
            f"C = {clip['max_norm']:g}, which shortens {clip['shortened']} of {prior['listed']} candidates "
            f"(norms {quartiles[0]:.3g} to {quartiles[-1]:.3g}, median {quartiles[2]:.3g})",
        ),
    )
    levels = tuple(_level(step, plain) for step in plain["steps"])
    positions = _positions([step["rung"]["noise_multiplier"] for step in plain["steps"]])
    return Section(
        name=str(prior["name"]),
        secret=str(prior["description"]),
        facts=facts,
        drawing=_drawing(plain, positions),
        marks=tuple(Mark(text=level.noise, left=f"{100 * x:.2f}%") for level, x in zip(levels, positions, strict=True)),
        levels=levels,
        measured=any(step["measured"] for step in plain["steps"]),
        violated=any(level.violated for level in levels),
        confidence=f"{100 * settings['confidence']:g}%",
    )


def _candidates(prior: Mapping[str, Any]) -> str:
    listed, distinct = prior["listed"], prior["distinct"]
    merged = "" if listed == distinct else f" of {listed}; those of equal gradient count as one"
    return f"K = {distinct}{merged}, {prior['bits']:.3g} bits"


def _releases(count: int) -> str:
    return "one release" if count == 1 else f"{count} releases of the record at the same weights"


def _level(step: Mapping[str, Any], plain: Mapping[str, Any]) -> Level:
    rung, measured, conformance = step["rung"], step["measured"], step["conformance"]
    success = rung["best"]["success"]
    return Level(
        noise=f"{rung['noise_multiplier']:g}",
        epsilon="∞" if rung["epsilon"] is None else f"{rung['epsilon']:.3g}",
        attack=percent(measured["hits"] / measured["trials"]) if measured else "–",
        attack_interval=f"[{percent(measured['low'])}, {percent(measured['high'])}]" if measured else "",
        best=percent(success["hits"] / success["trials"]),
        best_interval=f"[{percent(success['low'])}, {percent(success['high'])}]",
        instance=percent(rung["instance"]),
        mechanism=percent(rung["mechanism"]),
        approximate=percent(rung["approximate"]),
        bits=f"{rung['best']['bits']:.2f} of {plain['prior']['bits']:.2f}",
        verdict=str(conformance["verdict"]) if conformance else "not measured",
        findings=tuple(step["findings"]),
        violated=bool(step["violated"]),
    )


def _positions(levels: Sequence[float]) -> list[float]:
    """Places on a logarithmic axis."""
    logs = [math.log(level) for level in levels]
    span = logs[-1] - logs[0]
    if span <= 0:
        return [0.5] * len(logs)
    return [EDGE + (1 - 2 * EDGE) * (value - logs[0]) / span for value in logs]


def _drawing(plain: Mapping[str, Any], positions: Sequence[float]) -> Markup:
    rungs = [step["rung"] for step in plain["steps"]]
    pairs = list(zip(positions, plain["steps"], strict=True))
    successes = [rung["best"]["success"] for rung in rungs]
    best = [each["hits"] / each["trials"] for each in successes]
    dots = [
        (x, step["measured"]["hits"] / step["measured"]["trials"], step["measured"]["low"], step["measured"]["high"])
        for x, step in pairs
        if step["measured"]
    ]

    def line(values: Sequence[float]) -> list[tuple[float, float]]:
        return list(zip(positions, values, strict=True))

    kappa = plain["prior"]["kappa"]
    first, last = rungs[0], rungs[-1]
    return svg.chain(
        lines=(
            ("guess", [(0.0, kappa), (1.0, kappa)]),
            ("approximate", line([rung["approximate"] for rung in rungs])),
            ("mechanism", line([rung["mechanism"] for rung in rungs])),
            ("instance", line([rung["instance"] for rung in rungs])),
            ("best", line(best)),
        ),
        band=[(x, each["low"], each["high"]) for x, each in zip(positions, successes, strict=True)],
        dots=dots,
        grid=TICKS,
        label=(
            f"Success over the noise multiplier from {first['noise_multiplier']:g} to {last['noise_multiplier']:g}: best "
            f"possible {percent(best[0])} to {percent(best[-1])}, cap for any data {percent(first['mechanism'])} to "
            f"{percent(last['mechanism'])}"
        ),
    )
