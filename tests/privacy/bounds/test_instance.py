"""The bound from these candidates: the maximum over allocations, tightened by clusters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from gradleak.privacy.bounds import bayes, instance
from gradleak.privacy.bounds.candidates import Candidates

pytestmark = pytest.mark.oracle


def random_candidates(count: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, Candidates]:
    """Gradients with a common part, clipped at 1, and an uneven prior."""
    gradients = rng.standard_normal(size) + 0.7 * rng.standard_normal((count, size))
    gradients /= np.maximum(1.0, np.linalg.norm(gradients, axis=1, keepdims=True) / rng.uniform(0.5, 1.0, (count, 1)))
    prior = rng.dirichlet(np.full(count, 2.0))
    return gradients, Candidates(gram=gradients @ gradients.T, prior=prior)


@pytest.mark.parametrize("z", [0.3, 1.0])
def test_instance_bound_is_the_maximum_over_allocations(z: float) -> None:
    """No feasible split of κ beats it, and a good one comes close: checked by projected random search."""
    rng = np.random.default_rng(5)
    _, candidates = random_candidates(6, 20, rng)
    bound = instance.bound(candidates, z)
    values = []
    for radii in (candidates.radii(), candidates.radii(candidates.prior)):
        kappa = rng.dirichlet(np.full(6, 1.0), size=200_000)
        gain = norm.cdf(norm.ppf(np.maximum(kappa, 1e-300)) + radii / z)
        values.append(float((gain * candidates.prior).sum(1).max()))
    assert min(values) <= bound <= min(values) + 0.02


@pytest.mark.parametrize("z", [0.1, 0.3])
def test_clusters_tighten_the_instance_bound(z: float) -> None:
    """Two opposite groups of 40 nearly equal candidates: the release tells the group, and guessing within it remains."""
    rng = np.random.default_rng(6)
    sign = np.repeat([1.0, -1.0], 40)
    gradients = 0.9 * sign[:, None] * np.eye(30)[0] + 1e-4 * rng.standard_normal((80, 30))
    candidates = Candidates.uniform(gradients @ gradients.T)
    best = bayes.optimal(candidates, z, rng, confidence=0.999).success
    bound = instance.bound(candidates, z)
    assert best.low <= bound <= 1.15 / 40
    alone = instance._dual(candidates.prior, np.ones(80), candidates.radii(candidates.prior) / z)
    assert bound < 0.1 * alone
