"""A line chart as an SVG file, for the scripts of this folder: axes with ticks, lines or dots with bars, a legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 16, 34, 48
COLORS = ("#1f5fa8", "#c4481d", "#2a7f4f", "#7b4fa3", "#8a6d1a", "#444444")

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One curve. ``bars`` are (low, high) per point; ``dots`` draws marks in the place of a line."""

    label: str
    points: Sequence[Point]
    bars: Sequence[Point] = ()
    dots: bool = False
    dashed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None

    def span(self, values: Sequence[float]) -> tuple[float, float]:
        low = min(values) if self.low is None else self.low
        high = max(values) if self.high is None else self.high
        if self.log:
            return math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
        return low, high if high > low else low + 1.0

    def place(self, value: float, span: tuple[float, float]) -> float:
        at = math.log10(max(value, 1e-300)) if self.log else value
        return (at - span[0]) / (span[1] - span[0])

    def ticks(self, span: tuple[float, float]) -> list[tuple[float, str]]:
        if self.log:
            step = max(1, math.ceil((span[1] - span[0]) / 7))
            powers = range(int(span[0]), int(span[1]) + 1, step)
            return [(10.0**power, f"1e{power}" if abs(power) > 2 else f"{10.0**power:g}") for power in powers]
        return [(t, f"{t:.3g}") for t in (span[0] + i * (span[1] - span[0]) / 5 for i in range(6))]


def write_chart(path: str | Path, *, title: str, x: Axis, y: Axis, series: Sequence[Series]) -> None:
    """Writes the chart. Points that a logarithmic axis cannot hold are left out."""
    kept = [
        [(a, b) for a, b in s.points if (a > 0 or not x.log) and (b > 0 or not y.log) and math.isfinite(b)]
        for s in series
    ]
    across = x.span([a for points in kept for a, _ in points])
    heights = [b for points in kept for _, b in points] + [v for s in series for bar in s.bars for v in bar if v > 0]
    up = y.span(heights)

    def at(point: Point) -> Point:
        inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        height = min(max(y.place(point[1], up), 0.0), 1.0)
        return LEFT + inner_w * x.place(point[0], across), TOP + inner_h * (1 - height)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{WIDTH / 2}" y="20" text-anchor="middle" font-size="14">{escape(title)}</text>',
    ]
    floor, ceiling = HEIGHT - BOTTOM, TOP
    for value, text in x.ticks(across):
        place = LEFT + (WIDTH - LEFT - RIGHT) * x.place(value, across)
        parts.append(f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{ceiling}" y2="{floor}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{place:.1f}" y="{floor + 16}" text-anchor="middle">{text}</text>')
    for value, text in y.ticks(up):
        place = ceiling + (floor - ceiling) * (1 - y.place(value, up))
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{text}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x.label)}</text>')
    middle = (TOP + floor) / 2
    turn = f'transform="rotate(-90 16 {middle:.0f})"'
    parts.append(f'<text x="16" y="{middle:.0f}" text-anchor="middle" {turn}>{escape(y.label)}</text>')
    for number, (one, points) in enumerate(zip(series, kept, strict=True)):
        parts += _curve(one, points, COLORS[number % len(COLORS)], at)
        parts += _legend(one, number, COLORS[number % len(COLORS)])
    Path(path).write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def write_lines(
    path: str | Path,
    title: str,
    lines: Mapping[str, Sequence[Point]],
    *,
    x: str,
    y: str,
    log: tuple[bool, bool] = (False, False),
    dots: Sequence[str] = (),
    dashed: Sequence[str] = (),
) -> None:
    """``write_chart`` for curves by name: those in ``dots`` are drawn as marks, those in ``dashed`` broken."""
    series = [Series(label=n, points=points, dots=n in dots, dashed=n in dashed) for n, points in lines.items()]
    write_chart(path, title=title, x=Axis(label=x, log=log[0]), y=Axis(label=y, log=log[1]), series=series)


def _curve(one: Series, points: Sequence[Point], color: str, at: Callable[[Point], Point]) -> list[str]:
    places = [at(point) for point in points]
    parts = []
    for (value, _), (low, high) in zip(points, one.bars, strict=False):
        bottom, top = at((value, low)), at((value, high))
        parts.append(
            f'<line x1="{bottom[0]:.1f}" x2="{top[0]:.1f}" y1="{bottom[1]:.1f}" y2="{top[1]:.1f}" stroke="{color}"/>'
        )
    if one.dots:
        return parts + [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{color}"/>' for a, b in places]
    dash = ' stroke-dasharray="6 4"' if one.dashed else ""
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    return [*parts, f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.8"{dash}/>']


def _legend(one: Series, number: int, color: str) -> list[str]:
    x, y = LEFT + 10, TOP + 14 + 16 * number
    mark = (
        f'<circle cx="{x + 9}" cy="{y - 4}" r="3.5" fill="{color}"/>'
        if one.dots
        else f'<line x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}" stroke="{color}" stroke-width="1.8"'
        + (' stroke-dasharray="6 4"/>' if one.dashed else "/>")
    )
    return [mark, f'<text x="{x + 24}" y="{y}">{escape(one.label)}</text>']
