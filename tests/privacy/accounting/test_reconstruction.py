"""The reconstruction bounds against known values, against a privacy loss distribution, and against optimal attackers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import pld_privacy_accountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from gradleak.core.errors import UsageError
from gradleak.privacy.accounting import gaussian, reconstruction

pytestmark = pytest.mark.oracle

GRID = np.linspace(-10.0, 40.0, 5001)


def curve(event: dp_event.DpEvent, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    accountant = pld_privacy_accountant.PLDAccountant().compose(event, count)
    return GRID, np.asarray(accountant.get_delta(GRID))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("kappa", "value"), [(1e-4, 0.003274), (0.01, 0.092362), (0.1, 0.389144), (0.5, 0.841345)])
def test_gaussian_known_values(kappa: float, value: float) -> None:
    assert reconstruction.gaussian(kappa, 1.0) == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize(
    ("kappa", "value"), [(0.001, 0.00272), (0.01, 0.02718), (0.1, 0.27183), (0.3, 0.69343), (0.6, 0.85285)]
)
def test_laplace_known_values_and_its_loss_distribution(kappa: float, value: float) -> None:
    assert reconstruction.laplace(kappa, 1.0) == pytest.approx(value, abs=5e-6)
    found = reconstruction.from_curve(kappa, *curve(dp_event.LaplaceDpEvent(1.0)))
    assert found == pytest.approx(reconstruction.laplace(kappa, 1.0), abs=1e-5)


@pytest.mark.parametrize("kappa", [1e-4, 0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("mu", [0.5, 1.0, 3.0])
def test_curve_of_a_gaussian_gives_its_closed_form(kappa: float, mu: float) -> None:
    found = reconstruction.from_curve(kappa, *curve(dp_event.GaussianDpEvent(1 / mu)))
    exact = reconstruction.gaussian(kappa, mu)
    # The bound of a finite grid lies above; 5e-4 of it is what steps of 0.01 in epsilon can cost.
    assert exact * (1 - 1e-9) <= found <= exact * (1 + 5e-4)


@pytest.mark.parametrize(("kappa", "value"), [(0.001, 0.0476), (0.01, 0.1804), (0.1, 0.5473)])
def test_poisson_training_known_values(kappa: float, value: float) -> None:
    event = dp_event.PoissonSampledDpEvent(0.04, dp_event.GaussianDpEvent(1.5))
    assert reconstruction.from_curve(kappa, *curve(event, 2250)) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("candidates", [2, 10, 1000])
def test_no_optimal_attacker_beats_the_bound(mu: float, candidates: int) -> None:
    """K orthogonal gradients of equal length, decoded optimally: ∫φ(x - μ)·Φ(x)^{K-1}dx."""
    success, _ = integrate.quad(lambda x: stats.norm.pdf(x - mu) * stats.norm.cdf(x) ** (candidates - 1), -12, 16)
    bound = reconstruction.gaussian(1 / candidates, mu)
    assert success <= bound <= 1.2 * success


def test_two_opposite_gradients_reach_the_bound() -> None:
    """Antipodal pair at distance 2C: the sign of the projection is right with Φ(μ)."""
    assert reconstruction.gaussian(0.5, 1.3) == pytest.approx(stats.norm.cdf(1.3))


@settings(max_examples=200, deadline=None)
@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.05, 8.0), st.floats(1e-9, 0.3))
def test_every_looser_slice_is_looser(kappa: float, mu: float, delta: float) -> None:
    exact = reconstruction.gaussian(kappa, mu)
    epsilon = gaussian.epsilon(1 / mu, delta)
    assert exact <= reconstruction.approximate(kappa, epsilon, delta) * (1 + 1e-9)
    for order in (1.5, 2.0, 8.0):
        assert exact <= reconstruction.renyi(kappa, order, order * mu**2 / 2) * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-6, 0.5), st.floats(0.0, 5.0))
def test_mu_for_is_the_inverse(kappa: float, mu: float) -> None:
    probability = reconstruction.gaussian(kappa, mu)
    if probability < 1 - 1e-9:
        assert reconstruction.mu_for(kappa, probability) == pytest.approx(mu, abs=1e-5)


def test_noise_for_one_of_a_vocabulary() -> None:
    """One release: success at most 50 %, 10 %, 1 % for one of 50257 needs z = .243, .354, .561."""
    for probability, multiplier in ((0.5, 0.243), (0.1, 0.354), (0.01, 0.561)):
        assert 1 / reconstruction.mu_for(1 / 50257, probability) == pytest.approx(multiplier, abs=6e-4)


def test_the_ends() -> None:
    assert reconstruction.gaussian(0.0, 3.0) == 0.0 and reconstruction.gaussian(1.0, 3.0) == 1.0
    assert reconstruction.gaussian(0.3, math.inf) == 1.0 and reconstruction.gaussian(0.3, 0.0) == pytest.approx(0.3)
    assert reconstruction.laplace(0.0, 1.0) == 0.0 and reconstruction.laplace(0.2, 0.0) == pytest.approx(0.2)
    assert reconstruction.approximate(0.2, 1e6, 0.0) == 1.0 and reconstruction.approximate(
        0.0, 1.0, 1e-5
    ) == pytest.approx(1e-5)
    assert reconstruction.renyi(0.0, 2.0, 1.0) == 0.0
    assert reconstruction.from_curve(0.0, [0.0, 1.0], [0.5, 0.1]) == 0.1


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UsageError, match="guessing without the update succeeds"):
        reconstruction.mu_for(0.5, 0.1)
    for wrong in (
        lambda: reconstruction.gaussian(1.5, 1.0),
        lambda: reconstruction.gaussian(0.5, -1.0),
        lambda: reconstruction.laplace(0.5, -1.0),
        lambda: reconstruction.approximate(0.5, 1.0, 2.0),
        lambda: reconstruction.renyi(0.5, 1.0, 1.0),
        lambda: reconstruction.from_curve(0.5, [1.0], []),
        lambda: reconstruction.mu_for(0.0, 0.5),
    ):
        with pytest.raises(UsageError, match="must be"):
            wrong()
