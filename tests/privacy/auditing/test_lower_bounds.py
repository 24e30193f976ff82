"""Lower bounds on ε from counts, against published values of other tools, closed forms and the truth they must not exceed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from gradleak.core.errors import UsageError
from gradleak.privacy import binomial as counts
from gradleak.privacy.accounting import gaussian
from gradleak.privacy.auditing import lower_bounds as auditing
from gradleak.privacy.auditing import one_run
from gradleak.privacy.auditing.conformance import Verdict, conform
from gradleak.privacy.bounds import bayes
from gradleak.privacy.bounds.bayes import Rate

pytestmark = pytest.mark.oracle

DELTA = 1e-6


def test_what_membership_can_prove_at_most() -> None:
    """No error in n trials of each world, 95 %: about ln n."""
    found = [
        auditing.membership_epsilon(n, n, 0, n, significance=0.05, delta=0.0) for n in (100, 1000, 10_000, 100_000)
    ]
    assert found == pytest.approx([3.28, 5.60, 7.90, 10.21], abs=6e-3)


@pytest.mark.parametrize(
    ("count", "mu", "mu_lower", "epsilon_lower", "free"),
    [
        (2, 2, 1.31, 6.0, None),
        (16, 2, 1.70, 8.2, None),
        (256, 2, 1.82, 8.9, 3.9),
        (256, 4, 3.67, 21.7, 5.4),
        (50257, 4, 3.82, 22.9, 9.9),
    ],
)
def test_k_way_table(count: int, mu: float, mu_lower: float, epsilon_lower: float, free: float | None) -> None:
    """1,000 games at the expected number of hits of the best attacker on orthogonal candidates."""
    hits = round(1000 * bayes.orthogonal(count, mu))
    found = auditing.reconstruction_mu(hits, 1000, 1 / count, significance=0.05)
    assert found == pytest.approx(mu_lower, abs=0.02)
    assert auditing.epsilon_of_mu(found, 1e-5) == pytest.approx(epsilon_lower, abs=0.15)
    if free is not None:
        bound = auditing.reconstruction_epsilon(hits, 1000, 1 / count, significance=0.05, delta=1e-5)
        assert bound == pytest.approx(free, abs=0.06)


def test_a_k_way_audit_recovers_most_of_epsilon() -> None:
    hits = round(1000 * bayes.orthogonal(256, 2.0))
    found = auditing.epsilon_of_mu(auditing.reconstruction_mu(hits, 1000, 1 / 256, significance=0.05), 1e-5)
    assert 0.85 * gaussian.epsilon(0.5, 1e-5) <= found <= gaussian.epsilon(0.5, 1e-5)


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


def test_conformance_is_fisher_exact() -> None:
    from scipy.stats import fisher_exact

    predicted = Rate.of(438, 2000, 0.99)
    found = conform(298, 1000, predicted, kappa=1 / 256, mu_claimed=2.0)
    expected = fisher_exact([[298, 702], [438, 1562]], alternative="greater").pvalue
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert found.verdict is Verdict.VIOLATION and found.bound_violated
    assert conform(209, 1000, predicted, kappa=1 / 256, mu_claimed=2.0).verdict is Verdict.CONSISTENT
    assert conform(10, 1000, predicted, kappa=1 / 256, mu_claimed=2.0).verdict is Verdict.WEAK_ATTACK


def test_conformance_false_alarms() -> None:
    """2,000 correct runs at 5 %: at most 129 alarms with 99.9 %."""
    rng = np.random.default_rng(1)
    alarms = sum(
        conform(
            int(rng.binomial(500, 0.2)),
            500,
            Rate.of(int(rng.binomial(5000, 0.2)), 5000, 0.99),
            kappa=0.01,
            mu_claimed=1.5,
        ).verdict
        is Verdict.VIOLATION
        for _ in range(2000)
    )
    assert 20 <= alarms <= 129


def test_nothing_is_proved_by_nothing() -> None:
    assert auditing.membership_epsilon(0, 100, 0, 100, significance=0.05, delta=0.0) == 0.0
    assert auditing.membership_mu(50, 100, 50, 100, significance=0.05) == 0.0
    assert auditing.membership_mu(100, 100, 100, 100, significance=0.05) == 0.0
    assert auditing.reconstruction_mu(0, 100, 0.1, significance=0.05) == 0.0
    assert auditing.reconstruction_mu(100, 100, 1.0, significance=0.05) == 0.0
    assert auditing.reconstruction_epsilon(0, 100, 0.1, significance=0.05, delta=1e-5) == 0.0
    assert auditing.epsilon_of_mu(0.0, 1e-5) == 0.0
    assert auditing.epsilon_of_mu(math.inf, 1e-5) == math.inf


def test_bad_input() -> None:
    for delta in (-0.1, 1.0, math.nan):
        with pytest.raises(UsageError, match="delta"):
            auditing.membership_epsilon(1, 2, 1, 2, significance=0.05, delta=delta)
        with pytest.raises(UsageError, match="delta"):
            one_run.epsilon(1, 2, 3, significance=0.05, delta=delta)
    for kappa in (0.0, 1.1):
        with pytest.raises(UsageError, match="kappa"):
            auditing.reconstruction_mu(1, 2, kappa, significance=0.05)
    with pytest.raises(UsageError, match="mu"):
        auditing.epsilon_of_mu(-1.0, 1e-5)
    with pytest.raises(UsageError, match="canaries"):
        one_run.p_value(3, 2, 5, 1.0, 0.0)
    with pytest.raises(UsageError, match="epsilon"):
        one_run.p_value(1, 2, 5, -1.0, 0.0)
    with pytest.raises(UsageError, match="significance"):
        one_run.epsilon(1, 2, 5, significance=0.0, delta=0.0)
    with pytest.raises(UsageError, match="delta above 0"):
        one_run.gaussian_epsilon(1, 2, 5, significance=0.1, delta=0.0)
    with pytest.raises(UsageError, match="mu_claimed"):
        conform(1, 2, Rate.of(1, 2, 0.9), kappa=0.5, mu_claimed=0.0)
