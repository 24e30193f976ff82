"""Closed forms against thirty digits and other tools."""

from __future__ import annotations

from typing import Any

import mpmath
import pytest

from gradleak.privacy.accounting import closed_forms

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("order", [1.5, 2.0, 2.5, 5.0, 40.0])
@pytest.mark.parametrize(("rate", "z"), [(0.01, 2.5), (0.2, 0.7), (0.5, 1.0)])
def test_poisson_divergence_is_that_of_thirty_digits(order: float, rate: float, z: float) -> None:
    with mpmath.workdps(30):
        q, s, a = mpmath.mpf(rate), mpmath.mpf(z), mpmath.mpf(order)

        def integrand(x: Any) -> Any:
            return mpmath.npdf(x, 0, s) * ((1 - q) + q * mpmath.exp((2 * x - 1) / (2 * s * s))) ** a

        points = sorted({-12 * z, -2 * z, 0, 1, order - 2 * z, order, order + 2 * z, order + 12 * z})
        exact = float(mpmath.log(mpmath.quad(integrand, points)) / (a - 1))
    assert closed_forms.poisson_gaussian_divergence(order, rate, z) == pytest.approx(exact, rel=1e-8)


def test_a7_divergences_of_dp_accounting() -> None:
    """Equal at the whole order; at the others dp-accounting's value is an upper bound of the integral."""
    theirs = {1.5: 6.70580e-4, 2.5: 1.08549e-3, 5.0: 2.18076e-3}
    ours = {order: 50 * closed_forms.poisson_gaussian_divergence(order, 0.01, 2.5) for order in theirs}
    assert ours[5.0] == pytest.approx(theirs[5.0], rel=1e-5)
    assert all(0.95 * theirs[order] <= ours[order] <= theirs[order] * (1 + 1e-5) for order in theirs)


def test_names_of_other_tools_numbers() -> None:
    assert closed_forms.classical_epsilon(0.5, 1e-5) == pytest.approx(9.69, abs=5e-3)
    assert closed_forms.zcdp_epsilon(0.5, 1e-5) == pytest.approx(5.30, abs=5e-3)
    assert closed_forms.central_limit_epsilon([(0.6, 1000)], 0.001, 1e-6) == pytest.approx(0.494, abs=1e-3)
