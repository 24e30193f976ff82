"""Lower bounds on ε from counts, against published values of other tools, closed forms and the truth they must not exceed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradleak.core.errors import UsageError
from gradleak.privacy.accounting import gaussian
from gradleak.privacy.auditing import lower_bounds as auditing
from gradleak.privacy.auditing import one_run
from gradleak.privacy.auditing.conformance import conform
from gradleak.privacy.bounds import bayes
from gradleak.privacy.bounds.bayes import Rate

pytestmark = pytest.mark.oracle


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


@pytest.mark.parametrize("game", ["reconstruction", "membership"])
def test_a_mechanism_that_leaks_only_with_probability_delta_has_epsilon_zero(game: str) -> None:
    """It releases the record with probability δ and nothing otherwise, which is (0, δ)-private: a positive bound is false.

    400 audits at significance 5 %: more than 40 false bounds have probability below 1e-4. Without −δ nearly all are.
    """
    delta, trials, rng = 0.2, 300, np.random.default_rng(0)
    if game == "reconstruction":
        hits = rng.binomial(trials, delta + (1 - delta) / 10, size=400)
        bounds = [auditing.reconstruction_epsilon(int(k), trials, 0.1, significance=0.05, delta=delta) for k in hits]
    else:
        right, wrong = rng.binomial(trials, delta + (1 - delta) * 0.1, size=400), rng.binomial(trials, 0.1, size=400)
        bounds = [
            auditing.membership_epsilon(int(t), trials, int(f), trials, significance=0.05, delta=delta)
            for t, f in zip(right, wrong, strict=True)
        ]
    assert sum(bound > 0 for bound in bounds) <= 40


def test_the_k_way_bound_is_its_formula_with_an_exact_interval() -> None:
    from scipy.stats import binomtest

    low = binomtest(150, 400, alternative="greater").proportion_ci(confidence_level=0.95, method="exact").low
    bound = auditing.reconstruction_epsilon(150, 400, 1 / 16, significance=0.05, delta=0.125)
    assert bound == pytest.approx(math.log((low - 0.125) * 16))
