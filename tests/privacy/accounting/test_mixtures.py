"""The pairs that are said to be the worst, against data sets that are enumerated and drawn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from gradleak.privacy.accounting import closed_forms, mixtures

pytestmark = pytest.mark.oracle
EPSILONS = np.array([0.0, 0.1, 0.5, 1.0, 2.0])


def hockey_sticks(first: dict[float, float], second: dict[float, float], z: float) -> np.ndarray:
    """H_ε of two mixtures on a line by quadrature; keys are means."""
    x = np.linspace(-6 - 10 * z, 6 + 10 * z, 20_001)
    p, q = (sum(w * stats.norm.pdf(x, m, z) for m, w in law.items()) for law in (first, second))
    return np.array([np.trapezoid(np.maximum(p - math.exp(e) * q, 0.0), x) for e in EPSILONS])


def batches(values: tuple[float, ...], size: int) -> dict[float, float]:
    """The law of the sum of a batch of fixed size."""
    law: dict[float, float] = {}
    every = list(itertools.combinations(values, size))
    for batch in every:
        law[sum(batch)] = law.get(sum(batch), 0.0) + 1 / len(every)
    return law


@pytest.mark.parametrize(("records", "size", "z"), [(4, 2, 0.7), (5, 1, 1.5), (3, 2, 1.0)])
def test_fixed_batches_of_all_small_data_sets(records: int, size: int, z: float) -> None:
    """Every data set of values -1, 0, 1: none loses more than the pairs of the module, and one loses as much."""
    q = size / records
    zero = [order.curve(EPSILONS) for order in mixtures.fixed_pairs(q, 1.0, z, exchanged=False)]
    (exchange,) = mixtures.fixed_pairs(q, 2.0, z, exchanged=True)
    reached = np.zeros((2, len(EPSILONS)))
    for others in itertools.combinations_with_replacement((-1.0, 0.0, 1.0), records - 1):
        target, absent, other = (batches((value, *others), size) for value in (1.0, 0.0, -1.0))
        for place, (first, second) in enumerate(((target, absent), (absent, target))):
            values = hockey_sticks(first, second, z)
            assert (values <= zero[place] + 1e-6).all()
            reached[place] = np.maximum(reached[place], values)
        assert (hockey_sticks(target, other, z) <= exchange.curve(EPSILONS) + 1e-6).all()
    np.testing.assert_allclose(reached[0], zero[0], atol=1e-6)


def test_antipodal_contributions_are_the_worst_exchange_in_the_plane() -> None:
    """(1-q)·N(0) + q·N(g) against the same with h, g and h anywhere in the disc, by quadrature in two dimensions."""
    q, z = 0.3, 0.8
    axis = np.linspace(-6, 6, 701)
    grid = np.stack(np.meshgrid(axis, axis), -1)
    cell = (axis[1] - axis[0]) ** 2
    (bound,) = mixtures.exchange(q, 2.0, z)
    at_zero = np.exp(-(grid**2).sum(-1) / 2 / z**2) / (2 * math.pi * z**2)
    rng = np.random.default_rng(0)

    def density(g: np.ndarray) -> np.ndarray:
        return (1 - q) * at_zero + q * np.exp(-((grid - g) ** 2).sum(-1) / 2 / z**2) / (2 * math.pi * z**2)

    for angle, first, second in [
        (math.pi, 1.0, 1.0),
        *zip(rng.uniform(0, 2 * math.pi, 12), rng.random(12), rng.random(12), strict=True),
    ]:
        p, other = density(np.array([first, 0.0])), density(second * np.array([math.cos(angle), math.sin(angle)]))
        values = np.array([np.maximum(p - math.exp(e) * other, 0.0).sum() * cell for e in EPSILONS])
        assert (values <= bound.curve(EPSILONS) + 3e-5).all()
        if angle == math.pi:
            np.testing.assert_allclose(values, bound.curve(EPSILONS), atol=3e-5)


@pytest.mark.parametrize(("q", "z"), [(0.01, 1.0), (0.3, 0.6), (1.0, 2.0)])
def test_both_signs_of_epsilon_belong_to_one_curve(q: float, z: float) -> None:
    first, second = mixtures.presence(q, 1.0, z)
    x = np.linspace(-10 * z, 1 + 10 * z, 40_001)
    p, other = (1 - q) * stats.norm.pdf(x, 0, z) + q * stats.norm.pdf(x, 1, z), stats.norm.pdf(x, 0, z)
    for epsilon in (-2.0, -0.3, 0.0, 0.4, 1.5):
        direct = np.trapezoid(np.maximum(p - math.exp(epsilon) * other, 0.0), x)
        reverse = np.trapezoid(np.maximum(other - math.exp(epsilon) * p, 0.0), x)
        assert first.curve(np.array([epsilon]))[0] == pytest.approx(direct, abs=2e-7)
        assert second.curve(np.array([epsilon]))[0] == pytest.approx(reverse, abs=2e-7)


@pytest.mark.parametrize("order", [1.5, 2.0, 7.0, 40.0])
def test_moments_are_those_of_the_closed_form(order: float) -> None:
    first, _ = mixtures.presence(0.1, 1.0, 1.2)
    assert first.renyi(order) == pytest.approx(closed_forms.poisson_gaussian_divergence(order, 0.1, 1.2), rel=1e-8)
    whole, _ = mixtures.presence(1.0, 2.0, 3.0)
    assert whole.renyi(order) == pytest.approx(order / 2 * (2 / 3) ** 2, rel=1e-8)


def test_a_bound_of_two_pairs_is_above_the_divergence_of_each_data_set() -> None:
    """Fixed batches of 5 of 10, zero-out: the worst data set and a mild one."""
    q, z = 0.5, 1.0
    orders = mixtures.fixed_pairs(q, 1.0, z, exchanged=False)
    for alpha in (2.0, 8.0):
        for other in (-1.0, 0.0, 1.0):
            held = mixtures.Mixture(weights=(1 - q, q), means=(other, 1.0))
            gone = mixtures.Mixture(weights=(1 - q, q), means=(other, 0.0))
            pair = mixtures.Pair(upper=held, lower=gone, noise=z)
            assert pair.log_moment(alpha) / (alpha - 1) <= orders[0].renyi(alpha) + 1e-9
            assert pair.log_moment(alpha, reverse=True) / (alpha - 1) <= orders[1].renyi(alpha) + 1e-9
