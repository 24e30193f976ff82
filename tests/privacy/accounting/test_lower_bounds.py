"""The lower bound of shuffled batches against a simulation."""

from __future__ import annotations

import math

import pytest

from gradleak.privacy.accounting import lower_bounds

pytestmark = pytest.mark.oracle


def test_shuffle_lower_bound_against_a_simulation() -> None:
    """Draws the pair itself: the bound's event happens as often as the formula says."""
    import numpy as np

    z, batches, c, n = 0.8, 20, 2.4, 200_000
    rng = np.random.default_rng(0)
    noise = z * rng.normal(size=(n, batches))
    rates = []
    for height in (2.0, 1.0):
        at = noise.copy()
        at[:, 0] += height
        rates.append(float((at.max(1) > c).mean()))
    from scipy.stats import norm

    for rate, height in zip(rates, (2.0, 1.0), strict=True):
        exact = 1 - norm.cdf((c - height) / z) * norm.cdf(c / z) ** (batches - 1)
        # Five standard deviations: a false alarm in two million.
        assert abs(rate - exact) < 5 * math.sqrt(exact * (1 - exact) / n)
    assert lower_bounds.shuffle_delta(0.5, z, batches) >= rates[0] - math.exp(0.5) * rates[1] - 0.01
