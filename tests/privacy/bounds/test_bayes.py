"""The Bayes rate and leaked bits against quadrature, closed forms and a decoder that sees all P entries of a release."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from gradleak.core.errors import UsageError
from gradleak.privacy import binomial as counts
from gradleak.privacy.bounds import bayes, instance
from gradleak.privacy.bounds.candidates import Candidates

pytestmark = pytest.mark.oracle

TABLE = {
    2: (0.760, 0.921, 0.983, 0.998, 1.0),
    10: (0.341, 0.674, 0.903, 0.983, 0.998),
    1000: (0.0166, 0.120, 0.412, 0.764, 0.951),
    50257: (0.0009, 0.0154, 0.118, 0.413, 0.771),
}
ANTIPODAL = Candidates.uniform(np.array([[1.0, -1.0], [-1.0, 1.0]]))


def random_candidates(count: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, Candidates]:
    """Gradients with a common part, clipped at 1, and an uneven prior."""
    gradients = rng.standard_normal(size) + 0.7 * rng.standard_normal((count, size))
    gradients /= np.maximum(1.0, np.linalg.norm(gradients, axis=1, keepdims=True) / rng.uniform(0.5, 1.0, (count, 1)))
    prior = rng.dirichlet(np.full(count, 2.0))
    return gradients, Candidates(gram=gradients @ gradients.T, prior=prior)


@pytest.mark.parametrize("count", TABLE)
def test_orthogonal_table(count: int) -> None:
    assert [bayes.orthogonal(count, mu) for mu in (1, 2, 3, 4, 5)] == pytest.approx(TABLE[count], abs=1e-3)


@pytest.mark.parametrize(("count", "z"), [(2, 1.0), (10, 0.5), (256, 0.3)])
def test_simulation_meets_quadrature(count: int, z: float) -> None:
    """Three intervals at 99.9 %: a false alarm in one of 300 seeds."""
    found = bayes.optimal(
        Candidates.uniform(np.eye(count)), z, np.random.default_rng(0), trials=20_000, confidence=0.999
    )
    assert found.success.low <= bayes.orthogonal(count, 1 / z) <= found.success.high
    assert found.matched.low <= bayes.orthogonal(count, 1 / z) <= found.matched.high


@pytest.mark.parametrize("z", [0.5, 1.0, 3.0])
def test_an_antipodal_pair_reaches_the_mechanism_bound(z: float) -> None:
    bound = float(norm.cdf(norm.ppf(0.5) + 1 / z))
    found = bayes.optimal(ANTIPODAL, z, np.random.default_rng(1), confidence=0.999)
    assert found.success.low <= bound <= found.success.high
    assert instance.bound(ANTIPODAL, z) == pytest.approx(bound, abs=1e-9)


@pytest.mark.parametrize("z", [0.2, 0.5, 1.0])
def test_k_dimensions_say_what_all_p_entries_say(z: float) -> None:
    """A second derivation: noise in every entry, posterior from squared distances. Six intervals at 99.9 %."""
    rng = np.random.default_rng(2)
    gradients, candidates = random_candidates(12, 300, rng)
    truth = rng.choice(12, size=6000, p=candidates.prior)
    released = gradients[truth] + z * rng.standard_normal((6000, 300))
    logs = -((released[:, None, :] - gradients) ** 2).sum(2) / (2 * z * z) + np.log(candidates.prior)
    posterior = np.exp(logs - logs.max(1, keepdims=True))
    posterior /= posterior.sum(1, keepdims=True)
    hits = int((posterior.argmax(1) == truth).sum())
    low, high = counts.interval(hits, 6000, 0.999)
    found = bayes.optimal(candidates, z, rng, confidence=0.999)
    assert low <= found.success.high and found.success.low <= high
    pointwise = np.log2(posterior[np.arange(6000), truth] / candidates.prior[truth])
    error = math.hypot(float(pointwise.std() / math.sqrt(6000)), found.bits_error)
    assert found.bits == pytest.approx(float(pointwise.mean()), abs=3.5 * error)


def test_bits_against_quadrature_and_caps() -> None:
    """Two antipodal candidates: I = 1 - E log2(1 + exp(-2(1 + z ξ)/z²)). The cap is tight where the signal is weak."""
    z = 1.3
    grid = np.linspace(-9, 9, 20001)
    weight = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    exact = 1 - float(np.trapezoid(weight * np.logaddexp(0, -2 * (1 + z * grid) / z**2) / math.log(2), grid))
    found = bayes.optimal(ANTIPODAL, z, np.random.default_rng(3), trials=100_000)
    assert found.bits == pytest.approx(exact, abs=4 * found.bits_error)
    assert found.bits <= bayes.bits_cap(ANTIPODAL, z) + 4 * found.bits_error
    assert bayes.bits_cap(ANTIPODAL, 30.0) == pytest.approx(1 / (2 * 900 * math.log(2)), rel=1e-2)
    assert bayes.bits_cap(ANTIPODAL, 1e-6) == pytest.approx(1.0)
    assert bayes.fano_cap(2.0, 256) == pytest.approx(3 / 8)
    assert bayes.fano_cap(0.0, 1) == 1.0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("z", [0.05, 0.3, 1.0, 4.0])
def test_the_chain_holds(seed: int, z: float) -> None:
    """Bayes ≤ instance ≤ mechanism, and Fano; 32 intervals at 99.99 %."""
    rng = np.random.default_rng(seed)
    _, candidates = random_candidates(int(rng.integers(2, 40)), 50, rng)
    found = bayes.optimal(candidates, z, rng, trials=4000, confidence=0.9999)
    bound = instance.bound(candidates, z)
    mechanism = float(norm.cdf(norm.ppf(candidates.kappa) + 1 / z))
    assert found.success.low <= bound <= mechanism + 1e-12
    assert bound >= candidates.kappa - 1e-12
    assert found.matched.low <= found.success.high
    assert found.bits <= bayes.bits_cap(candidates, z) + 4 * found.bits_error


def test_one_candidate_has_nothing_to_leak() -> None:
    single = Candidates.uniform(np.array([[0.5]]))
    found = bayes.optimal(single, 1.0, np.random.default_rng(0), trials=10)
    assert (found.success.value, found.bits, instance.bound(single, 1.0)) == (1.0, 0.0, 1.0)


def test_bad_numbers() -> None:
    two = Candidates.uniform(np.eye(2))
    with pytest.raises(UsageError, match="eigenvalue"):
        _ = Candidates.uniform(np.array([[0.0, 1.0], [1.0, 0.0]])).root
    for z in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UsageError, match="positive"):
            bayes.optimal(two, z, np.random.default_rng(0))
        with pytest.raises(UsageError, match="positive"):
            instance.bound(two, z)
    with pytest.raises(UsageError, match="trials"):
        bayes.optimal(two, 1.0, np.random.default_rng(0), trials=0)
    with pytest.raises(UsageError, match="count"):
        bayes.orthogonal(0, 1.0)
    for arguments in ((3, 2, 0.05), (-1, 2, 0.05), (0, 0, 0.05), (1, 2, 0.0), (1, 2, 1.0)):
        with pytest.raises(UsageError):
            counts.lower(*arguments)
