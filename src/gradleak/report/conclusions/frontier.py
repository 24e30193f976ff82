"""Leakage against accuracy, point by point: what the table, the chart and the recommendation read. A function of the
records and trainings of a run folder; must not run anything and knows no markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gradleak.core.record import Record
from gradleak.harness.utility.frontier import Frontier, read_header, read_trained
from gradleak.harness.utility.tasks import make_task
from gradleak.harness.utility.training import Interval, Trained, drop, interval
from gradleak.report.conclusions import phrasing
from gradleak.report.conclusions.pooling import Cell, Pooled, cells, groups

METRIC: Mapping[str, str] = {"text": "token_recall", "image": "ssim"}
"""Leakage, chosen before any run: the most sensitive of the leak metrics on a scale from 0 to 1, larger leaks more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One setting of the knob.

    Attributes:
        knob: as typed; None without the defense.
        attack, leakage: the attack that recovered most, with its interval over all repeats; the largest of several
            scores errs toward more leakage. None if no attack gave a score.
        guessing: the same metric without any update.
        tested: False if no attack on this setting ended in a result that may count.
        adaptive: True if at least one such attack modeled every stage of the defense.
        accuracy, drop: over seeds; the drop pairs equal seeds. None if it could not be
            trained under the defense with every seed.
        seconds, kept_bytes: of one training, means over seeds.
        reason: why there is no accuracy.
        front: no other point leaks less at no lower accuracy, or has higher accuracy at no more leakage.
    """

    knob: str | None
    defense: str
    attack: str
    leakage: Pooled | None
    guessing: float | None
    tested: bool
    adaptive: bool
    accuracy: Interval | None
    drop: Interval | None
    epsilon: float | None
    guarantee: str
    seconds: float
    kept_bytes: int
    reason: str
    front: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """All points of a run folder, "none" first, then in the order of the knobs."""

    run: str
    template: str
    metric: str
    task: str
    chance: float
    points: tuple[Point, ...]

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)


def read_sweep(run: Path, records: Sequence[Record]) -> Sweep | None:
    """The frontier of a run folder, or None if it holds none. Raises ``DataError`` if a file cannot be read."""
    header = read_header(run)
    trained = read_trained(run)
    found = cells(records)
    if header is None or not trained or not found:
        return None
    metric = METRIC[found[0].modality]
    knobs = {"none": None, **header.by_name()}
    by_defense = {members[0].defense: members for members in groups(found).values()}
    named = {_name_of(members): members for members in by_defense.values()}
    points = [_point(knob, name, named[name], trained, metric) for name, knob in knobs.items() if name in named]
    return Sweep(
        run=str(run),
        template=header.template,
        metric=metric,
        task=_task(header),
        chance=trained[0].chance,
        points=mark_front(points),
    )


def mark_front(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points with ``front`` set where no other point is at least as good in both and better in one."""
    return tuple(replace(point, front=_is_on_front(point, points)) for point in points)


def _is_on_front(point: Point, points: Sequence[Point]) -> bool:
    place = place_of(point)
    others = [other for each in points if each is not point and (other := place_of(each)) is not None]
    if place is None:
        return False
    return not any(o[0] <= place[0] and o[1] >= place[1] and o != place for o in others)


def place_of(point: Point) -> tuple[float, float] | None:
    """Leakage and accuracy; None where one of them is missing or no attack counts.

    An attack that scores below guessing leaks what guessing gives: whoever sees nothing has that.
    """
    if point.leakage is None or point.accuracy is None or not point.tested:
        return None
    return max(point.leakage.value, point.guessing or 0.0), point.accuracy.value


def _name_of(members: Sequence[Cell]) -> str:
    return members[0].records[0].defense_name()


def _task(header: Frontier) -> str:
    return f"{make_task(header.task, 0).description}; {header.rounds} rounds, {header.seeds} seeds"


def _point(knob: str | None, name: str, members: Sequence[Cell], trained: Sequence[Trained], metric: str) -> Point:
    scored = [cell for cell in members if metric in cell.scores]
    best = max(scored, key=lambda cell: cell.scores[metric].value, default=None)
    tested = [cell for cell in scored if cell.tested()]
    own = [each for each in trained if each.defense == name]
    # One failed training spoils the point: a mean over the seeds that survived would flatter the defense.
    failed = any(each.accuracy is None for each in own)
    accuracy = {} if failed else {each.seed: each.accuracy for each in own if each.accuracy is not None}
    plain = {each.seed: each.accuracy for each in trained if each.defense == "none" and each.accuracy is not None}
    privacy = members[0].records[0].privacy
    baseline = members[0].baseline.get(metric)
    return Point(
        knob=knob,
        defense=name,
        attack="–" if best is None else best.attack,
        leakage=None if best is None else best.scores[metric],
        guessing=None if baseline is None else baseline.value,
        tested=bool(tested),
        adaptive=any(not cell.flags.get("NON_ADAPTIVE") for cell in tested),
        accuracy=_share(interval(list(accuracy.values()))) if accuracy else None,
        drop=drop(accuracy, plain) if accuracy.keys() & plain.keys() else None,
        epsilon=privacy["epsilon"],
        guarantee=phrasing.guarantee(privacy),
        seconds=sum(each.cpu_seconds for each in own) / len(own) if own else 0.0,
        kept_bytes=max((each.kept_bytes for each in own), default=0),
        reason=next((each.reason for each in own if each.reason), ""),
    )


def _share(found: Interval) -> Interval:
    """The part of the interval that a share can have."""
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A point in phrasing."""

    knob: str
    leakage: str
    guessing: str
    attack: str
    accuracy: str
    drop: str
    guarantee: str
    seconds: str
    kept: str
    front: str
    remark: str


def remarks(sweep: Sweep) -> tuple[str, ...]:
    """What a reader must know about single settings before believing their numbers."""
    return tuple(f"{row.knob}: {row.remark}" for row in rows(sweep) if row.remark)


def rows(sweep: Sweep) -> tuple[Row, ...]:
    return tuple(_row(point) for point in sweep.points)


def _row(point: Point) -> Row:
    return Row(
        knob=point.knob or "none",
        leakage="not tested" if point.leakage is None else between(point.leakage),
        guessing="–" if point.guessing is None else f"{point.guessing:.3f}",
        attack=point.attack,
        accuracy="no result" if point.accuracy is None else between(point.accuracy),
        drop="–" if point.drop is None else between(point.drop),
        guarantee=point.guarantee,
        seconds=f"{point.seconds:.1f}",
        kept=f"{point.kept_bytes / 1024:.0f} KiB" if point.kept_bytes else "nothing",
        front="front" if point.front else "",
        remark=_remark(point),
    )


def _remark(point: Point) -> str:
    if point.accuracy is None:
        return point.reason
    if not point.tested:
        return "Every search failed here, so the leakage says nothing."
    return "" if point.adaptive else "No attack modeled every stage of this defense: its leakage may be too low."


def between(score: Pooled | Interval) -> str:
    """``0.31 [0.20, 0.44]``."""
    if score.low is None or score.high is None:
        return f"{score.value:.3f}"
    return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"


def caption(sweep: Sweep) -> str:
    """What a reader of the table must know of its columns."""
    return (
        f"accuracy: {sweep.task}; chance {sweep.chance:.2f}. [low, high] 95% intervals. ε is of one release of the audited "
        "update, not of a training."
    )
