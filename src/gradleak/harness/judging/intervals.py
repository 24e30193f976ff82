"""A mean of few records is not a number, it is an interval. Must not know which metric it serves.

Two rules, both at 95 %:

- *rates* (values in [0, 1]): the exact interval of Clopper and Pearson with s = Σ values "successes" of n. For values
  of 0 and 1 it is the textbook interval. For fractional values, replace each value x by a coin that falls 1 with
  probability x: the mean stays, the number of ones is binomial, and the textbook interval covers exactly. Using s, the
  expectation of that number, leaves out the coins' own spread: of all variables in [0, 1] with a given mean the
  coin has the largest variance, so the interval errs to the wide side.
- *anything else*: the percentile bootstrap of the mean, seeded.

Both take the values as independent. Records of one batch share an update, so an interval over one cell is narrower
than a repetition of the experiment would show: repeat with other batches and aggregate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import betaincinv

from gradleak.core.errors import DataError
from gradleak.core.metric import Score

CONFIDENCE = 0.95
RESAMPLES = 10_000
_TAIL = (1.0 - CONFIDENCE) / 2.0
_ROUNDING = 1e-9


def summarize(
    values: Sequence[float], *, bounded: bool, chance: float | None, higher_is_better: bool, seed: int = 0
) -> Score:
    """The mean of per-record values with its interval.

    Args:
        values: at least one finite number.
        bounded: True if they lie in [0, 1].

    Raises:
        DataError: if there is no value, one is not finite, or one leaves the bounds.
    """
    _require_values(values, bounded)
    n = len(values)
    total = math.fsum(values)
    low, high = clopper_pearson(total, n) if bounded else bootstrap_mean(values, [1.0] * n, seed=seed)
    return Score(value=total / n, low=low, high=high, chance=chance, n=n, higher_is_better=higher_is_better)


def aggregate(scores: Sequence[Score], *, bounded: bool, seed: int = 0) -> Score:
    """Scores of one metric over several cells as one score over all their records.

    The value and the chance level are means weighted by the number of records. A rate has the exact interval of the
    pooled records; anything else is bootstrapped over whole cells, since those are what was repeated. A
    single cell keeps its own interval.

    Raises:
        DataError: if there is no score, or the scores do not agree on their direction.
    """
    if not scores:
        raise DataError("There is no score to aggregate. Pass the scores of at least one cell.")
    if len({score.higher_is_better for score in scores}) > 1:
        raise DataError("Scores of opposite direction cannot be pooled. Aggregate one metric at a time.")
    if len(scores) == 1:
        return scores[0]
    sizes = [float(score.n) for score in scores]
    n = sum(score.n for score in scores)
    total = math.fsum(score.value * score.n for score in scores)
    means = [score.value for score in scores]
    low, high = clopper_pearson(total, n) if bounded else bootstrap_mean(means, sizes, seed=seed)
    chances = [score.chance for score in scores if score.chance is not None]
    chance = None
    if len(chances) == len(scores):
        chance = math.fsum(level * size for level, size in zip(chances, sizes, strict=True)) / n
    return Score(value=total / n, low=low, high=high, chance=chance, n=n, higher_is_better=scores[0].higher_is_better)


def clopper_pearson(successes: float, n: int) -> tuple[float, float]:
    """The interval of a rate from ``successes`` in [0, n] of ``n`` ≥ 1 trials; ``successes`` may be fractional."""
    failures = n - successes
    low = 0.0 if successes < _ROUNDING else float(betaincinv(successes, failures + 1.0, _TAIL))
    high = 1.0 if failures < _ROUNDING else float(betaincinv(successes + 1.0, failures, 1.0 - _TAIL))
    return low, high


def bootstrap_mean(values: Sequence[float], weights: Sequence[float], *, seed: int) -> tuple[float, float]:
    """Percentiles of the weighted mean over resamples of ``values`` with replacement; a point if there is one value.

    The values are sorted first, so that their order cannot change the interval.
    """
    pairs = np.array(sorted(zip(values, weights, strict=True)), dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    drawn, weight = pairs[:, 0][picks], pairs[:, 1][picks]
    means = (drawn * weight).sum(axis=1) / weight.sum(axis=1)
    low, high = np.quantile(means, [_TAIL, 1.0 - _TAIL])
    # A mean of equal values may miss them by one rounding; the interval must still hold the value it surrounds.
    center = math.fsum(pairs[:, 0] * pairs[:, 1]) / math.fsum(pairs[:, 1])
    return min(float(low), center), max(float(high), center)


def _require_values(values: Sequence[float], bounded: bool) -> None:
    if not values:
        raise DataError("There is no value to average. Leave out metrics that do not apply.")
    for value in values:
        if not math.isfinite(value) or (bounded and not 0.0 <= value <= 1.0):
            allowed = "in [0, 1]" if bounded else "finite"
            raise DataError(
                f"A metric returned {value}; its values must be {allowed}. Mend the metric or its `bounded`."
            )
