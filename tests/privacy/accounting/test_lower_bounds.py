"""The lower bound of shuffled batches against a simulation."""

from __future__ import annotations

import math

import pytest

from gradleak.privacy.accounting import gaussian, lower_bounds

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


@pytest.mark.parametrize("epsilon", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("z", [0.4, 1.0])
def test_an_epoch_of_one_batch_is_one_gaussian_release(z: float, epsilon: float) -> None:
    """Zero-out moves one sum by one: with a single batch the test is the likelihood ratio, and the bound is exact."""
    found = lower_bounds.shuffle_delta(epsilon, z, 1)
    assert found == pytest.approx(gaussian.delta(z, epsilon), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("batches", [2, 3, 50])
def test_the_bound_is_the_best_threshold_on_the_largest_of_all_batches(batches: int) -> None:
    """By the law of the maximum of T independent normals, one of them moved, on a grid of its own."""
    from scipy.stats import norm

    z, epsilon = 0.6, 1.3
    heights = [-1 + 0.001 * k for k in range(9000)]

    others = norm.cdf([c / z for c in heights]) ** (batches - 1)
    moved, still = norm.cdf([(c - 2) / z for c in heights]), norm.cdf([(c - 1) / z for c in heights])
    values = (1 - moved * others) - math.exp(epsilon) * (1 - still * others)
    assert lower_bounds.shuffle_delta(epsilon, z, batches) == pytest.approx(max(values), rel=1e-3)
