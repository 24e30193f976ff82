"""From frontiers to one sentence: the cheapest setting that the evidence supports, or that there is none. It reads
intervals, not estimates, and it never calls anything safe. Must not run anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gradleak.core.errors import UsageError
from gradleak.report.conclusions.frontier import Point, Sweep, between


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What is asked for: leakage and accuracy drop, both in [0, 1], strictly below.

    Raises:
        UsageError: for a limit out of range.
    """

    leakage: float
    drop: float

    def __post_init__(self) -> None:
        for name, value in (("--leakage-below", self.leakage), ("--accuracy-drop-below", self.drop)):
            if not 0 < value <= 1:
                raise UsageError(f"{name} must be above 0 and at most 1, got {value:g}. Both are shares, such as 0.05.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One setting with the run that it stands in."""

    run: str
    metric: str
    point: Point


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """The answer.

    Attributes:
        found: the setting of the smallest accuracy drop among those that meet both limits; None if none does.
        close: settings whose estimates meet both limits but whose intervals do not.
        every: all settings that were looked at.
    """

    limits: Limits
    found: Finding | None
    close: tuple[Finding, ...]
    every: tuple[Point, ...]

    def sentences(self) -> tuple[str, ...]:
        asked = f"leakage below {self.limits.leakage:g} and an accuracy drop below {self.limits.drop:g}"
        if self.found is None:
            first = f"None of the {len(self.every)} settings tested was shown to have {asked}."
        else:
            point = self.found.point
            first = (
                f"Cheapest of the {len(self.every)} settings tested with {asked}: {point.defense}. {self.found.metric} "
                f"{_text(point)}; best attack {point.attack}; {point.guarantee} (one release). Run: {self.found.run}"
            )
        guess = max((each.guessing for each in self.every if each.guessing is not None), default=0.0)
        limit = (
            f"Guessing without any update reaches {guess:.3f} there: no defense can bring the leakage below that.",
        )
        close = tuple(
            f"Close: {each.point.defense}, {each.metric} {_text(each.point)}. Its estimates meet the limits, its 95% "
            "intervals do not: more --repeats narrow the leakage, more --utility-seeds the drop."
            for each in self.close
        )
        left_out = [each.defense for each in self.every if not _counts(each)]
        missing = (f"Not counted, without a result of an informed attack or of every training: {', '.join(left_out)}.",)
        last = (
            "This speaks of the attacks, data and tiny training of these runs. A stronger attack or another model may leak "
            "more; without an ε nothing bounds it."
        )
        return (first, *(limit if guess >= self.limits.leakage else ()), *close, *(missing if left_out else ()), last)


def recommend(sweeps: Sequence[Sweep], limits: Limits) -> Recommendation:
    """The setting of the smallest mean accuracy drop whose intervals lie below both limits.

    A setting counts only if an attack that modeled all its stages gave a result. The upper ends of both 95 % intervals
    must be below the limits; a single seed has no interval and never meets one.

    Raises:
        UsageError: if the runs measure leakage by different metrics.
    """
    metrics = sorted({sweep.metric for sweep in sweeps})
    if len(metrics) > 1:
        raise UsageError(
            f"These runs measure leakage by {' and '.join(metrics)}, which cannot be compared. Split them."
        )
    every = [Finding(run=sweep.run, metric=sweep.metric, point=point) for sweep in sweeps for point in sweep.points]
    counted = [each for each in every if _counts(each.point)]
    meeting = [each for each in counted if _meets(each.point, limits)]
    close = [each for each in counted if each not in meeting and _estimates_meet(each.point, limits)]
    return Recommendation(
        limits=limits,
        found=min(meeting, key=_cost, default=None),
        close=tuple(sorted(close, key=_cost)),
        every=tuple(each.point for each in every),
    )


def _counts(point: Point) -> bool:
    return point.tested and point.adaptive and point.drop is not None


def _meets(point: Point, limits: Limits) -> bool:
    if point.leakage is None or point.drop is None or point.drop.high is None:
        return False
    if point.guessing is not None and point.guessing >= limits.leakage:
        return False
    return point.leakage.has_interval and point.leakage.high < limits.leakage and point.drop.high < limits.drop


def _estimates_meet(point: Point, limits: Limits) -> bool:
    if point.leakage is None or point.drop is None:
        return False
    return max(point.leakage.value, point.guessing or 0.0) < limits.leakage and point.drop.value < limits.drop


def _cost(each: Finding) -> tuple[float, float]:
    point = each.point
    return (
        point.drop.value if point.drop is not None else 1.0,
        point.leakage.value if point.leakage is not None else 1.0,
    )


def _text(point: Point) -> str:
    leakage = "–" if point.leakage is None else between(point.leakage)
    return leakage if point.drop is None else f"{leakage}, accuracy drop {between(point.drop)}"
