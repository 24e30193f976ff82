"""Known draws against enumeration over all coins."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from gradleak.privacy.accounting import gaussian
from gradleak.privacy.accounting.known_draws import energy, total_draws
from gradleak.privacy.plan.plan import Phase
from gradleak.privacy.plan.views import Release

pytestmark = pytest.mark.oracle


def release(*noise: float, rate: float, draws: int = 1, population: int | None = None, steps: int = 1) -> Release:
    phases = tuple(Phase(noise_multiplier=z, steps=steps) for z in noise)
    return Release(mechanism="gaussian", phases=phases, law="known", rate=rate, draws=draws, population=population)


def enumerated(noise: list[float], law: dict[int, float], epsilon: float) -> float:
    """δ as the mean over all draws of all steps."""
    total = 0.0
    for draws in itertools.product(law.items(), repeat=len(noise)):
        weight = math.prod(w for _, w in draws)
        square = sum((m / z) ** 2 for (m, _), z in zip(draws, noise, strict=True))
        total += weight * (gaussian.delta(square**-0.5, epsilon) if square else 0.0)
    return total


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
def test_coins_of_several_steps_and_levels(epsilon: float) -> None:
    law = {0: 0.7, 1: 0.3}
    assert energy(release(1.0, rate=0.3, steps=4)).delta(epsilon) == pytest.approx(
        enumerated([1.0] * 4, law, epsilon), rel=1e-10
    )
    assert energy(release(1.0, 2.0, 0.7, rate=0.3)).delta(epsilon) == pytest.approx(
        enumerated([1.0, 2.0, 0.7], law, epsilon), rel=1e-10
    )


@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_several_draws_in_a_step(epsilon: float) -> None:
    binomial = {m: float(stats.binom.pmf(m, 3, 0.2)) for m in range(4)}
    value = energy(release(1.5, rate=0.2, draws=3, steps=3)).delta(epsilon)
    assert value == pytest.approx(enumerated([1.5] * 3, binomial, epsilon), rel=1e-10)
    without = {m: float(stats.hypergeom.pmf(m, 10, 3, 2)) for m in range(3)}
    value = energy(release(1.5, rate=0.2, draws=3, population=10, steps=3)).delta(epsilon)
    assert value == pytest.approx(enumerated([1.5] * 3, without, epsilon), rel=1e-10)


def test_epsilon_is_the_inverse_down_to_the_smallest_delta() -> None:
    law = energy(release(2.0, rate=0.05, steps=500))
    for delta in (0.1, 1e-5, 1e-12, 1e-18):
        assert law.log_delta(law.epsilon(delta)) == pytest.approx(math.log(delta), abs=1e-6)
    assert law.epsilon(0.99) == 0.0


def test_rounding_to_cells_errs_upward_and_little() -> None:
    """20,000 steps of thirty draws: the law of S has more values than cells; the mean is known."""
    law = energy(release(4.0, rate=0.1, draws=30, steps=20_000))
    mean = 20_000 * (30 * 0.1 * 0.9 + 9.0) / 16
    assert mean * (1 - 1e-9) <= float(law.values @ law.weights) <= 1.005 * mean
    assert law.weights.sum() == pytest.approx(1.0)


def test_the_curve_below_zero_is_the_mirror() -> None:
    law = energy(release(1.0, rate=0.4, steps=3))
    assert law.delta(-0.7) == pytest.approx(1 - math.exp(-0.7) + math.exp(-0.7) * law.delta(0.7))


def test_the_number_of_draws_that_a_tail_leaves() -> None:
    one = release(1.0, rate=0.01, steps=1000)
    count = total_draws(one, 1e-5)
    assert stats.binom.sf(count, 1000, 0.01) <= 1e-5 < stats.binom.sf(count - 1, 1000, 0.01)
    assert total_draws(release(1.0, rate=0.2, draws=3, population=10, steps=3), 1e-5) == 9
    assert np.isfinite(energy(one).epsilon(1e-5))
