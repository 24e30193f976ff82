"""Charts as pure functions of numbers. Horizontal positions are percentages and curves do not scale their strokes,
so one drawing fits a phone and a page without tiny text. Must not know records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

INSET = 3.0
"""Percent left free at both ends, so that a dot at the end of the scale is whole."""

Point = tuple[float, float]


def strip(
    *, value: float, low: float, high: float, prior: float | None, strong: bool, failed: bool, label: str
) -> Markup:
    """A dot on its interval, with the prior-only level as a bar.

    Args:
        value, low, high, prior: positions in [0, 1] of the scale.
        strong: drawn in the accent color: above guessing.
        failed: drawn hollow: the search failed, so the position says little.
        label: what the drawing shows, in words.
    """
    kind = " ".join(["strip", *(["strong"] if strong else []), *(["failed"] if failed else [])])
    parts = [Markup('<svg class="{}" width="100%" height="20" role="img" aria-label="{}">').format(kind, label)]
    parts += [Markup('<line class="grid" x1="{0}" x2="{0}" y1="0" y2="20"/>').format(at(t / 4)) for t in range(5)]
    if prior is not None:
        parts.append(Markup('<line class="prior" x1="{0}" x2="{0}" y1="2" y2="18"/>').format(at(prior)))
    parts.append(Markup('<line class="range" x1="{}" x2="{}" y1="10" y2="10"/>').format(at(low), at(high)))
    parts.append(Markup('<circle class="dot" cx="{}" cy="10" r="4.5"/>').format(at(value)))
    return Markup("").join([*parts, Markup("</svg>")])


def axis(labels: Sequence[str]) -> Markup:
    """Labels at even distances along the scale of ``strip``."""
    last = max(len(labels) - 1, 1)
    parts = [
        Markup('<text x="{}" y="11" text-anchor="middle">{}</text>').format(at(i / last), text)
        for i, text in enumerate(labels)
    ]
    return (
        Markup('<svg class="axis" width="100%" height="16" aria-hidden="true">')
        + Markup("").join(parts)
        + Markup("</svg>")
    )


def curves(*, lines: Iterable[Sequence[Point]], levels: Iterable[float], grid: Iterable[float], label: str) -> Markup:
    """Lines in the unit square, y upward, with dashed horizontal levels and a faint grid."""
    head = '<svg class="curves" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{}">'
    parts = [Markup(head).format(label)]
    parts += [_level("grid", y) for y in grid]
    parts += [Markup('<polyline class="curve" points="{}"/>').format(_points(line)) for line in lines]
    parts += [_level("truth", y) for y in levels]
    return Markup("").join([*parts, Markup("</svg>")])


def chain(
    *,
    lines: Iterable[tuple[str, Sequence[Point]]],
    band: Sequence[tuple[float, float, float]],
    dots: Iterable[tuple[str, float, float, float, float]],
    grid: Iterable[float],
    label: str,
) -> Markup:
    """Bounds over a horizontal axis in the unit square, y upward.

    Args:
        lines: kind and points of each curve; the kind is its class in the style sheet.
        band: x, low and high of an interval that is drawn as an area.
        dots: kind, x, value, low and high of what was measured.
    """
    head = '<svg class="curves chain" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{}">'
    parts = [Markup(head).format(label)]
    parts += [_level("grid", y) for y in grid]
    outline = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
    parts.append(Markup('<polygon class="band" points="{}"/>').format(_points(outline)))
    parts += [Markup('<polyline class="{}" points="{}"/>').format(kind, _points(points)) for kind, points in lines]
    for kind, x, value, low, high in dots:
        bar, dot = _points([(x, low), (x, high)]), _points([(x, value), (x, value)])
        # A line of no length with round ends is a dot that the stretched drawing does not distort.
        parts.append(
            Markup('<polyline class="range {0}" points="{1}"/><polyline class="dot {0}" points="{2}"/>').format(
                kind, bar, dot
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])


def at(fraction: float) -> str:
    """A position of the scale in percent; what lies outside the scale is drawn at its end."""
    return f"{INSET + (100 - 2 * INSET) * min(max(fraction, 0.0), 1.0):.2f}%"


def _level(kind: str, y: float) -> Markup:
    return Markup('<line class="{0}" x1="0" x2="100" y1="{1}" y2="{1}"/>').format(kind, f"{100 * (1 - y):.2f}")


def _points(line: Sequence[Point]) -> str:
    return " ".join(f"{100 * x:.2f},{100 * (1 - y):.2f}" for x, y in line)


def thin(line: Sequence[Point], most: int) -> Sequence[Point]:
    """At most about ``most`` points: denser at the start, where curves move; both ends are kept."""
    if len(line) <= most:
        return line
    ratio = len(line) ** (1 / (most - 1))
    kept = {0, len(line) - 1} | {min(len(line) - 1, math.floor(ratio**i) - 1) for i in range(most)}
    step = max(1, len(line) // most)
    return [line[i] for i in sorted(kept | set(range(0, len(line), 2 * step)))]


def nice_top(value: float) -> float:
    """The next 1, 2, 4, 6, 8 or 10 times a power of ten, which divides into four readable parts."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cross:
    """A point of the unit square with its intervals across (x) and along (y)."""

    x: float
    y: float
    across: Point
    along: Point
    strong: bool


def frontier(
    *, line: Sequence[Point], crosses: Iterable[Cross], guessing: float | None, grid: Iterable[float], label: str
) -> Markup:
    """Points with both intervals in the unit square, y upward, a line through those on the front, a level for guessing."""
    head = '<svg class="curves chain" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{}">'
    parts = [Markup(head).format(label)]
    parts += [_level("grid", y) for y in grid]
    if guessing is not None:
        parts.append(_level("guess", guessing))
    parts.append(Markup('<polyline class="best" points="{}"/>').format(_points(line)))
    for cross in crosses:
        for ends in (
            [(cross.across[0], cross.y), (cross.across[1], cross.y)],
            [(cross.x, cross.along[0]), (cross.x, cross.along[1])],
        ):
            parts.append(Markup('<polyline class="thin" points="{}"/>').format(_points([_inside(end) for end in ends])))
        center = _inside((cross.x, cross.y))
        kind = "dot front" if cross.strong else "dot"
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(kind, _points([center, center])))
    return Markup("").join([*parts, Markup("</svg>")])


def _inside(point: Point) -> Point:
    x, y = (min(max(value, 0.0), 1.0) for value in point)
    return x, y
