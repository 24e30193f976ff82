"""The sandwich as a reader sees it: one chart over the noise multiplier, and a table of the same numbers.
A function of stored numbers; must not compute a bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from rich.table import Table

from gradleak.report.conclusions.frontier import Sweep, between
from gradleak.report.page import svg

TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
EDGE = 0.03
"""Share of the width that is left free at both ends."""
_APART = 0.012
"""Shift of the dots of one noise level from each other, so that their intervals do not cover each other."""
_KINDS = ("first", "second", "third")
"""Styles of the attacks on the chart; any more share the last."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rated:
    """A rate in words, with its interval; ``text`` alone where there is none."""

    text: str
    interval: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """One row of the table. ``attacks`` are in the order of the section's."""

    noise: str
    epsilon: str
    attacks: tuple[Rated, ...]
    best: Rated
    instance: str
    mechanism: str
    approximate: str
    bits: str
    floor: str
    accuracy: Rated
    verdict: str
    findings: tuple[str, ...]
    violated: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    text: str
    left: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Everything that the page says about one prior.

    Attributes:
        attacks: name and style of each attack on real releases.
        floor: what the error floor rests on; empty if the secret is no picture.
        accuracy: the level without the defense and the task in words; None if nothing was trained.
    """

    name: str
    secret: str
    facts: tuple[tuple[str, str], ...]
    claim: tuple[tuple[str, str], ...]
    drawing: Markup
    marks: tuple[Mark, ...]
    levels: tuple[Level, ...]
    attacks: tuple[tuple[str, str], ...]
    accuracy: tuple[str, str] | None
    floor: str
    violated: bool
    confidence: str


def sections(found: Sequence[Mapping[str, Any]], sweep: Sweep | None = None) -> tuple[Section, ...]:
    """One section per prior.

    Args:
        sweep: the short trainings of the same folder; its accuracies join the levels of the same defense.
    """
    return tuple(_section(plain, _trained(plain, sweep)) for plain in found)


def terminal_table(plain: Mapping[str, Any], sweep: Sweep | None = None) -> Table:
    """The chain as rows for a terminal."""
    trained = _trained(plain, sweep)
    table = Table(box=None, pad_edge=False)
    accuracy = (*(("error floor",) if _floor_words(plain) else ()), *(("accuracy",) if trained is not None else ()))
    names = (
        "noise",
        "ε",
        *_titles(plain),
        "best possible",
        "cap, this data",
        "cap, any data",
        "e^ε κ + δ",
        "bits leaked",
    )
    for column in (*names, *accuracy):
        table.add_column(column, justify="right")
    for step in plain["steps"]:
        level = _level(step, plain, trained)
        cells = (*map(_joined, level.attacks), _joined(level.best), level.instance, level.mechanism, level.approximate)
        last = (*((level.floor,) if level.floor else ()), *((_joined(level.accuracy),) if trained is not None else ()))
        table.add_row(level.noise, level.epsilon, *cells, level.bits, *last)
    return table


def percent(value: float) -> str:
    """A success rate with three digits, never rounded to certainty or to nothing."""
    scaled = 100 * value
    if 0 < scaled < 0.01:
        return "<0.01%"
    if 99.95 <= scaled < 100:
        return ">99.9%"
    return f"{scaled:.3g}%" if scaled < 10 else f"{scaled:.1f}%".replace(".0%", "%")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trained:
    """Accuracy by defense, as positions and in words; and without a defense."""

    values: Mapping[str, float]
    words: Mapping[str, str]
    plain: float
    task: str


def _trained(plain: Mapping[str, Any], sweep: Sweep | None) -> _Trained | None:
    """The accuracies that belong to this chain's mechanism; None if the folder's trainings are of another."""
    points = (
        {} if sweep is None else {point.defense: point.accuracy for point in sweep.points if point.accuracy is not None}
    )
    names = {step["defense"] for step in plain["steps"]}
    if sweep is None or "none" not in points or not names & points.keys():
        return None
    return _Trained(
        values={name: points[name].value for name in names & points.keys()},
        words={name: between(points[name]) for name in names & points.keys()},
        plain=points["none"].value,
        task=sweep.task,
    )


def _section(plain: Mapping[str, Any], trained: _Trained | None) -> Section:
    prior, clip, settings = plain["prior"], plain["clip"], plain["settings"]
    quartiles = clip["norms"]
    facts = (
        ("model", str(plain["model"])),
        ("secret", str(prior["description"])),
        ("candidates", _candidates(prior)),
        ("guessing", f"κ = {percent(prior['kappa'])}: the best guess without a release"),
        ("view", f"{plain['view']}; {_releases(plain)}"),
        (
            "clip",
            f"C = {clip['max_norm']:g}, which shortens {clip['shortened']} of {prior['listed']} candidates "
            f"(norms {quartiles[0]:.3g} to {quartiles[-1]:.3g}, median {quartiles[2]:.3g})",
        ),
    )
    levels = tuple(_level(step, plain, trained) for step in plain["steps"])
    positions = _positions([step["rung"]["noise_multiplier"] for step in plain["steps"]])
    return Section(
        name=str(prior["name"]),
        secret=str(prior["description"]),
        facts=facts,
        claim=_claim(plain),
        drawing=_drawing(plain, positions, trained),
        marks=tuple(Mark(text=level.noise, left=f"{100 * x:.2f}%") for level, x in zip(levels, positions, strict=True)),
        levels=levels,
        attacks=tuple((name, _kind(place)) for place, name in enumerate(_titles(plain))),
        accuracy=None if trained is None else (percent(trained.plain), trained.task),
        floor=_floor_words(plain),
        violated=any(level.violated for level in levels),
        confidence=f"{100 * settings['confidence']:g}%",
    )


def _claim(plain: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """What ε of one release rests on; its noise multiplier stands in the table."""
    claim = plain["steps"][0]["claim"]
    claim = {**claim, "mechanism": str(claim["mechanism"]).partition(", multiplier")[0]}
    keys = ("mechanism", "sensitivity", "sampling", "composition", "relation", "view", "unit")
    composed = plain["settings"]["releases"]
    rows = tuple((key, str(claim[key])) for key in keys)
    notes = tuple(("note", str(note)) for note in claim["notes"])
    more = (("composed", f"ε in the table is of {composed} such releases"),) if composed > 1 else ()
    return (("defense", str(plain["settings"]["defense"])), *rows, *more, *notes)


def _floor_words(plain: Mapping[str, Any]) -> str:
    floor = plain["steps"][0]["floor"]
    if floor is None:
        return ""
    return (
        f"for a picture that is normal around the mean of the list, standard deviation {floor['prior_std']:.3g}: the root mean squared "
        f"error per pixel that no attacker beats, in units of it (van Trees; estimated from {floor['points']} draws, rounded down)"
    )


def _candidates(prior: Mapping[str, Any]) -> str:
    listed, distinct = prior["listed"], prior["distinct"]
    merged = "" if listed == distinct else f" of {listed}; those of equal gradient count as one"
    return f"K = {distinct}{merged}, {prior['bits']:.3g} bits"


def _releases(plain: Mapping[str, Any]) -> str:
    count, rate = plain["settings"]["releases"], plain["steps"][0]["rung"]["sampling_rate"]
    text = "one release" if count == 1 else f"{count} releases of the record at the same weights"
    return text if rate == 1.0 else f"{text}, each holding the record with probability {rate:g}, in secret"


def _level(step: Mapping[str, Any], plain: Mapping[str, Any], trained: _Trained | None) -> Level:
    rung, conformance = step["rung"], step["conformance"]
    by_name = {each["attack"]: each for each in step["measured"]}
    words = None if trained is None else trained.words.get(step["defense"])
    text, _, interval = (words or "–").partition(" ")
    return Level(
        noise=f"{rung['noise_multiplier']:g}",
        epsilon="∞" if rung["epsilon"] is None else f"{rung['epsilon']:.3g}",
        attacks=tuple(_rated(by_name.get(name, {}).get("rate")) for name in _attacks(plain)),
        best=_rated(rung["best"]["success"]),
        instance=percent(rung["instance"]),
        mechanism=percent(rung["mechanism"]),
        approximate=percent(rung["approximate"]),
        bits=f"{rung['best']['bits']:.2f} of {plain['prior']['bits']:.2f}",
        floor="" if step["floor"] is None else f"{100 * step['floor']['share']:.3g}%",
        accuracy=Rated(text=text, interval=interval),
        verdict=str(conformance["verdict"]) if conformance else "not measured",
        findings=(*_refusals(step), *step["findings"]),
        violated=bool(step["violated"]),
    )


def _refusals(step: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{each['attack']}: {each['reason']}" for each in step["measured"] if each["rate"] is None)


def _rated(rate: Mapping[str, Any] | None) -> Rated:
    if rate is None:
        return Rated(text="–")
    return Rated(
        text=percent(rate["hits"] / rate["trials"]), interval=f"[{percent(rate['low'])}, {percent(rate['high'])}]"
    )


def _joined(rated: Rated) -> str:
    return f"{rated.text} {rated.interval}".strip()


def _attacks(plain: Mapping[str, Any]) -> tuple[str, ...]:
    """The attacks of all levels, in the order in which they ran."""
    return tuple(dict.fromkeys(each["attack"] for step in plain["steps"] for each in step["measured"]))


def _titles(plain: Mapping[str, Any]) -> tuple[str, ...]:
    """The attacks without their settings, where that still tells them apart."""
    full = _attacks(plain)
    short = tuple(name.partition("(")[0] for name in full)
    return short if len(set(short)) == len(short) else full


def _kind(place: int) -> str:
    return _KINDS[min(place, len(_KINDS) - 1)]


def _positions(levels: Sequence[float]) -> list[float]:
    """Places on a logarithmic axis."""
    logs = [math.log(level) for level in levels]
    span = logs[-1] - logs[0]
    if span <= 0:
        return [0.5] * len(logs)
    return [EDGE + (1 - 2 * EDGE) * (value - logs[0]) / span for value in logs]


def _drawing(plain: Mapping[str, Any], positions: Sequence[float], trained: _Trained | None) -> Markup:
    rungs = [step["rung"] for step in plain["steps"]]
    successes = [rung["best"]["success"] for rung in rungs]
    best = [each["hits"] / each["trials"] for each in successes]

    def line(values: Sequence[float]) -> list[tuple[float, float]]:
        return list(zip(positions, values, strict=True))

    kappa = plain["prior"]["kappa"]
    first, last = rungs[0], rungs[-1]
    return svg.chain(
        lines=(
            ("guess", [(0.0, kappa), (1.0, kappa)]),
            *_accuracy_lines(plain, positions, trained),
            ("approximate", line([rung["approximate"] for rung in rungs])),
            ("mechanism", line([rung["mechanism"] for rung in rungs])),
            ("instance", line([rung["instance"] for rung in rungs])),
            ("best", line(best)),
        ),
        band=[(x, each["low"], each["high"]) for x, each in zip(positions, successes, strict=True)],
        dots=_dots(plain, positions),
        grid=TICKS,
        label=(
            f"Success over the noise multiplier from {first['noise_multiplier']:g} to {last['noise_multiplier']:g}: best "
            f"possible {percent(best[0])} to {percent(best[-1])}, cap for any data {percent(first['mechanism'])} to "
            f"{percent(last['mechanism'])}"
        ),
    )


def _accuracy_lines(
    plain: Mapping[str, Any], positions: Sequence[float], trained: _Trained | None
) -> list[tuple[str, list[tuple[float, float]]]]:
    if trained is None:
        return []
    known = [
        (x, trained.values[step["defense"]])
        for x, step in zip(positions, plain["steps"], strict=True)
        if step["defense"] in trained.values
    ]
    return [("undefended", [(0.0, trained.plain), (1.0, trained.plain)]), ("accuracy", known)]


def _dots(plain: Mapping[str, Any], positions: Sequence[float]) -> list[tuple[str, float, float, float, float]]:
    places = {name: place for place, name in enumerate(_attacks(plain))}
    middle = (len(places) - 1) / 2
    return [
        (
            _kind(places[each["attack"]]),
            x + _APART * (places[each["attack"]] - middle),
            each["rate"]["hits"] / each["rate"]["trials"],
            each["rate"]["low"],
            each["rate"]["high"],
        )
        for x, step in zip(positions, plain["steps"], strict=True)
        for each in step["measured"]
        if each["rate"] is not None
    ]
