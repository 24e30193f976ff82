"""The mean-squared-error floors against a linear Gaussian model, where the best attacker is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradleak.core.errors import UsageError
from gradleak.privacy.bounds import cramer_rao as floors

pytestmark = pytest.mark.oracle


def linear(seed: int) -> tuple[np.ndarray, float]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((30, 6)) * rng.lognormal(0, 1.5, 6), float(rng.uniform(0.1, 3))


@pytest.mark.parametrize("seed", range(5))
def test_least_squares_attains_cramer_rao_and_the_posterior_mean_attains_van_trees(seed: int) -> None:
    j, std = linear(seed)
    information = floors.fisher_information(j, std)
    rng = np.random.default_rng(seed + 100)
    x = rng.standard_normal((20_000, 6))
    y = x @ j.T + std * rng.standard_normal((20_000, 30))
    unbiased = ((y @ np.linalg.pinv(j).T - x) ** 2).sum(1)
    posterior = ((y @ j @ np.linalg.inv(j.T @ j + std**2 * np.eye(6)) - x) ** 2).sum(1)
    for errors, floor in (
        (unbiased, floors.cramer_rao(information)),
        (posterior, floors.van_trees([information], np.eye(6))),
    ):
        # Five standard errors.
        assert errors.mean() / 6 == pytest.approx(floor, abs=5 * errors.std() / math.sqrt(20_000) / 6)


@pytest.mark.parametrize("seed", range(20))
def test_order_of_the_floors(seed: int) -> None:
    j, std = linear(seed)
    informations = [floors.fisher_information(j * s, std) for s in (0.3, 1.0, 2.0)]
    assert floors.trace_bound(informations[1]) <= floors.cramer_rao(informations[1]) * (1 + 1e-12)
    local = np.mean([floors.local_bayes(each, np.eye(6)) for each in informations])
    assert floors.van_trees(informations, np.eye(6)) <= local


def test_an_unseen_direction_has_no_unbiased_attacker_but_a_prior_has_a_floor() -> None:
    j = np.random.default_rng(0).standard_normal((20, 4))
    j -= j.mean(1, keepdims=True)
    information = floors.fisher_information(j, 1e-3)
    assert floors.cramer_rao(information) == math.inf
    assert floors.van_trees([information], np.eye(4)) == pytest.approx(1 / 4, rel=1e-6)
    assert floors.trace_bound(np.zeros((3, 3))) == math.inf


def test_renyi_floor_is_below_the_gaussian_one() -> None:
    """One coordinate of range 2 behind noise 1 with sensitivity 2: ε₂ = μ² = 4, and the sample mean's error is 1."""
    assert floors.renyi_bound([2.0], 4.0) == pytest.approx(1 / math.expm1(4.0))
    assert floors.renyi_bound([2.0], 4.0) <= 1.0


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="matrix"):
        floors.fisher_information([1.0, 2.0], 1.0)
    with pytest.raises(UsageError, match="noise_std"):
        floors.fisher_information(np.eye(2), 0.0)
    with pytest.raises(UsageError, match="square"):
        floors.trace_bound(np.ones((2, 3)))
    with pytest.raises(UsageError, match="at least one"):
        floors.van_trees([], np.eye(2))
    with pytest.raises(UsageError, match="positive"):
        floors.renyi_bound([1.0], 0.0)
