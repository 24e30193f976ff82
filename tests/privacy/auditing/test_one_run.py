"""The audit of one run against published values, the binomial tail and canaries of a known release."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from gradleak.privacy import binomial as counts
from gradleak.privacy.accounting import gaussian
from gradleak.privacy.auditing import lower_bounds as auditing
from gradleak.privacy.auditing import one_run

pytestmark = pytest.mark.oracle

DELTA = 1e-6


def thresholds(shift: float, n: int = 10_000) -> tuple[list[tuple[int, int]], float]:
    """True and false positives at each vertex of the empirical curve of n even quantiles, and 5 % over their number."""
    out = norm.ppf((np.arange(n) + 0.5) / n)
    cuts = np.concatenate([np.union1d(out, out + shift), [np.inf]])
    points = np.stack([np.searchsorted(out + shift, cuts), np.searchsorted(out, cuts)], axis=1).astype(float)
    kept: list[int] = []
    for i, (x, y) in enumerate(points):
        while len(kept) >= 2:
            (a, b), (c, d) = points[kept[-2]], points[kept[-1]]
            if (d - b) * (x - c) - (y - d) * (c - a) > 0:
                break
            kept.pop()
        kept.append(i)
    rates = [(n - int(points[i, 0]), n - int(points[i, 1])) for i in kept]
    return rates, 0.05 / len(rates)


@pytest.mark.parametrize(
    ("shift", "clopper_pearson", "gdp", "one", "fdp"),
    [
        (1, 1.787, 4.335, 1.13346, 2.164749),
        (2, 3.828, 10.241, 2.311945, 4.7218075),
        (4, 6.413, 24.691, 4.395568, 9.133752),
    ],
)
def test_scores_of_jax_privacy(shift: float, clopper_pearson: float, gdp: float, one: float, fdp: float) -> None:
    """Its test: 10,000 deterministic normal scores in and out, 95 %, δ = 1e-6; the largest bound over all thresholds."""
    n = 10_000
    rates, significance = thresholds(shift)
    epsilons = [auditing.membership_epsilon(t, n, f, n, significance=significance, delta=DELTA) for t, f in rates]
    mus = [auditing.membership_mu(t, n, f, n, significance=significance) for t, f in rates]
    assert max(epsilons) == pytest.approx(clopper_pearson, abs=6e-4)
    assert auditing.epsilon_of_mu(max(mus), DELTA) == pytest.approx(gdp, abs=6e-4)
    guessed = [(t, t + f) for t, f in rates if t + f > 0]
    found = family = 0.0
    for correct, guesses in sorted(guessed, key=lambda pair: -counts.lower(*pair, significance)):
        # A larger bound needs a larger share of right guesses than the one in hand: the others are not searched.
        if correct / guesses > 1 / (1 + math.exp(-found)):
            found = max(found, one_run.epsilon(correct, guesses, 2 * n, significance=significance, delta=DELTA))
        if correct / guesses > 1 / (1 + math.exp(-family)):
            bound = one_run.gaussian_epsilon(correct, guesses, 2 * n, significance=significance, delta=DELTA)
            family = max(family, bound)
    assert found == pytest.approx(one, rel=1e-5)
    assert family == pytest.approx(fdp, rel=1e-5)
    assert max(*epsilons, found, family) < gaussian.epsilon(1 / shift, DELTA)


def test_one_run_p_value_at_delta_zero_is_the_binomial_tail_and_grows_with_delta() -> None:
    assert one_run.p_value(90, 100, 500, 1.0, 0.0) == pytest.approx(binom.sf(89, 100, math.e / (1 + math.e)))
    values = [one_run.p_value(90, 100, 500, 1.0, delta) for delta in (0.0, 1e-6, 1e-4, 1e-2)]
    assert values == sorted(values)
    assert one_run.p_value(0, 100, 100, 1.0, 1e-5) == 1.0
    assert one_run.epsilon(50, 100, 100, significance=0.05, delta=0.0) == 0.0
    assert one_run.gaussian_epsilon(50, 100, 100, significance=0.05, delta=1e-5) == 0.0


@pytest.mark.parametrize("family", [False, True])
def test_one_run_bounds_hold_on_gaussian_canaries(family: bool) -> None:
    """300 runs of 400 independent canaries at μ = 1, guesses by a fixed rule, 10 %: at most 48 false bounds with 99.7 %."""
    rng = np.random.default_rng(0)
    truth = gaussian.epsilon(1.0, 1e-5)
    bound = one_run.gaussian_epsilon if family else one_run.epsilon
    wrong = 0
    for _ in range(300):
        member = rng.integers(2, size=400).astype(bool)
        scores = rng.standard_normal(400) + member
        chosen = (scores > 2.0) | (scores < -1.0)
        correct = int(((scores > 0.5) == member)[chosen].sum())
        wrong += bound(correct, int(chosen.sum()), 400, significance=0.1, delta=1e-5) > truth
    assert wrong <= 48
