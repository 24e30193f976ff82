"""The privacy curve against dp-accounting and high-precision arithmetic."""

from __future__ import annotations

import math

import mpmath
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak.privacy.accounting import gaussian

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("noise_multiplier", [0.3, 0.5, 0.6, 1.0, 3.731, 10.0])
def test_epsilon_is_that_of_dp_accounting(noise_multiplier: float) -> None:
    """Its loss distribution is discretized at 1e-4 and rounded up, so it may lie that much above."""
    pld = privacy_loss_distribution.from_gaussian_mechanism(noise_multiplier)
    for delta in (1e-9, 1e-5, 1e-2):
        assert gaussian.epsilon(noise_multiplier, delta) == pytest.approx(pld.get_epsilon_for_delta(delta), abs=2e-4)


@pytest.mark.parametrize(
    ("noise_multiplier", "epsilon"), [(1.0, 4.377), (0.5, 9.997), (0.25, 24.38), (0.1, 91.82), (0.05, 284.4)]
)
def test_known_values_at_delta_1e_5(noise_multiplier: float, epsilon: float) -> None:
    assert gaussian.epsilon(noise_multiplier, 1e-5) == pytest.approx(epsilon, rel=1e-4)


def test_noise_for_a_target() -> None:
    assert gaussian.epsilon(0.6002, 1e-5) == pytest.approx(8.0, abs=1e-3)
    assert gaussian.epsilon(3.7306, 1e-5) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("noise_multiplier", [1e-3, 0.05, 0.3, 1.0, 10.0, 1e3])
@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.1, 1.0, 10.0, 30.0])
def test_delta_is_that_of_sixty_digits(noise_multiplier: float, epsilon: float) -> None:
    with mpmath.workdps(60):
        mu, e = 1 / mpmath.mpf(noise_multiplier), mpmath.mpf(epsilon)
        exact = mpmath.ncdf(mu / 2 - e / mu) - mpmath.exp(e) * mpmath.ncdf(-mu / 2 - e / mu)
    assert gaussian.delta(noise_multiplier, epsilon) == pytest.approx(float(exact), rel=1e-10, abs=1e-300)


@settings(max_examples=200, deadline=None)
@given(st.floats(0.01, 1e3), st.floats(1e-15, 0.5))
def test_epsilon_and_delta_are_inverse_and_err_upwards(noise_multiplier: float, delta: float) -> None:
    epsilon = gaussian.epsilon(noise_multiplier, delta)
    assert gaussian.delta(noise_multiplier, epsilon) <= delta * (1 + 1e-12)
    if epsilon > 0.0:
        assert gaussian.delta(noise_multiplier, epsilon * (1 - 1e-9)) >= delta * (1 - 1e-12)


@settings(max_examples=200, deadline=None)
@given(st.floats(0.01, 1e3), st.floats(1.001, 3.0), st.floats(1e-15, 0.3))
def test_more_noise_or_more_delta_never_costs_more(noise_multiplier: float, factor: float, delta: float) -> None:
    epsilon = gaussian.epsilon(noise_multiplier, delta)
    assert gaussian.epsilon(noise_multiplier * factor, delta) <= epsilon
    assert gaussian.epsilon(noise_multiplier, delta * factor) <= epsilon


def test_epsilon_at_the_ends() -> None:
    assert gaussian.epsilon(0.0, 1e-5) == math.inf
    assert gaussian.epsilon(1e-320, 1e-5) == math.inf
    assert gaussian.epsilon(1e9, 1e-5) == 0.0
    assert gaussian.epsilon(1e-6, 1e-5) == pytest.approx(0.5e12, rel=1e-4)
