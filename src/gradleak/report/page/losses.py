"""How the short trainings of a frontier went, setting by setting, beside the training without a defense. A function of
the trainings of a run folder; must not run anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gradleak.harness.utility.training import Trained
from gradleak.report.page import svg

POINTS_PER_CURVE = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class LossPanel:
    """One setting: a line per seed, and the mean over seeds of the undefended loss.

    Attributes:
        ticks: text and distance from the top; span: what the horizontal axis ends at.
    """

    name: str
    drawing: Markup
    ticks: tuple[tuple[str, str], ...]
    span: str


def panels(named: Sequence[tuple[str, str]], trained: Sequence[Trained]) -> tuple[LossPanel, ...]:
    """One panel per setting that was trained, all on one scale from zero to the largest loss.

    Args:
        named: what to call a setting and its name in ``trained``.
    """
    by_defense = {name: [each.losses for each in trained if each.defense == name and each.losses] for _, name in named}
    shown = [value for runs in by_defense.values() for losses in runs for value in losses if math.isfinite(value)]
    if not shown:
        return ()
    top = svg.nice_top(max(shown))
    plain = _mean(by_defense.get("none", []))
    return tuple(_panel(label, by_defense[name], plain, top) for label, name in named if by_defense[name])


def _panel(label: str, runs: Sequence[Sequence[float]], plain: Sequence[float], top: float) -> LossPanel:
    rounds = max(len(losses) for losses in runs)
    lines = [("curve", _line(losses, rounds, top)) for losses in runs]
    lines += [("best", _line(plain, rounds, top))] if plain else []
    last = sum(losses[-1] for losses in runs) / len(runs)
    return LossPanel(
        name=label,
        drawing=svg.chain(
            lines=lines,
            band=(),
            dots=(),
            grid=(0.0, 0.5, 1.0),
            label=f"Training loss over {rounds} rounds, {label}: {len(runs)} seeds end at {last:.2f} on average",
        ),
        ticks=tuple((f"{top * share:g}", f"{100 * (1 - share):.0f}%") for share in (1.0, 0.5, 0.0)),
        span=f"{rounds} rounds",
    )


def _line(losses: Sequence[float], rounds: int, top: float) -> Sequence[svg.Point]:
    across = max(rounds - 1, 1)
    points = [(place / across, min(max(value / top, 0.0), 1.0)) for place, value in enumerate(losses)]
    return svg.thin([point for point in points if math.isfinite(point[1])], POINTS_PER_CURVE)


def _mean(runs: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*runs, strict=False)]
