"""The price of goals: least noise, its ε, and variances relative to a reference, each against the definition."""

from __future__ import annotations

import pytest

from gradleak.privacy.accounting import gaussian
from gradleak.privacy.plan.plan import Phase, Plan
from gradleak.privacy.targets.noise_for_targets import FRONTIER, REFERENCE, compare, noise_for
from gradleak.privacy.targets.targets import EpsilonAtMost, SuccessAtMost

pytestmark = pytest.mark.oracle

ONE = Plan(phases=(Phase(noise_multiplier=1.0),))


def test_the_noise_for_an_epsilon_is_that_of_one_gaussian_release() -> None:
    price = noise_for(ONE, EpsilonAtMost(epsilon=2.0))
    assert gaussian.epsilon(price.noise_multiplier, ONE.delta) == pytest.approx(2.0, rel=1e-4)
    assert price.epsilon == pytest.approx(2.0, rel=1e-4) and price.epsilon <= 2.0
    assert price.relative_variance is None and price.target == "ε ≤ 2"


def test_variances_are_relative_to_the_reference_and_prices_are_sorted() -> None:
    goals = (EpsilonAtMost(epsilon=1.0), REFERENCE, SuccessAtMost(probability=0.5, candidates=16))
    prices = compare(ONE, goals)
    levels = [price.noise_multiplier for price in prices]
    assert levels == sorted(levels) and {p.target for p in prices} == {str(g) for g in goals}
    reference = next(p for p in prices if p.target == str(REFERENCE))
    assert reference.relative_variance == pytest.approx(1.0)
    for price in prices:
        assert price.relative_variance == pytest.approx((price.noise_multiplier / reference.noise_multiplier) ** 2)


def test_less_success_costs_more_noise() -> None:
    strict, loose = (noise_for(ONE, SuccessAtMost(probability=p, candidates=512)) for p in (0.01, 0.1))
    assert strict.noise_multiplier > loose.noise_multiplier and strict.epsilon < loose.epsilon


def test_the_frontier_names_every_goal_once() -> None:
    assert len({str(goal) for goal in FRONTIER}) == len(FRONTIER) and REFERENCE in FRONTIER
