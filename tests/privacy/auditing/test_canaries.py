"""Triggers against random search and ascent."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradleak.core.errors import UsageError
from gradleak.privacy.auditing.canaries import SquareLoss, ascend
from gradleak.privacy.auditing.one_step import audit_step

pytestmark = pytest.mark.oracle


def problem(seed: int) -> tuple[SquareLoss, np.ndarray, float, np.random.Generator]:
    """A linear regression with 200 records in the unit ball: loss, mean gradient, mean loss."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 11))
    weights = rng.standard_normal(size) * rng.uniform(0.05, 1.5)
    loss = SquareLoss(weights=weights, x_bound=float(rng.uniform(0.3, 2)), y_bound=float(rng.uniform(0.3, 2)))
    x, y = feasible(loss, 200, rng)
    residual = x @ weights - y
    return loss, (residual[:, None] * x).mean(0), float((residual**2).mean() / 2), rng


def feasible(loss: SquareLoss, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x = rng.standard_normal((count, loss.weights.size))
    # Half of them on the boundary, where the maxima mostly are.
    radius = np.where(rng.random(count) < 0.5, 1.0, rng.random(count) ** (1 / loss.weights.size))
    x *= loss.x_bound * (radius / np.linalg.norm(x, axis=1))[:, None]
    return x, loss.y_bound * np.where(
        rng.random(count) < 0.5, rng.choice([-1.0, 1.0], count), rng.uniform(-1, 1, count)
    )


def allowed(loss: SquareLoss, x: np.ndarray, y: float) -> bool:
    return bool(np.linalg.norm(x) <= loss.x_bound * (1 + 1e-9) and abs(y) <= loss.y_bound)


@pytest.mark.parametrize("seed", range(100))
def test_closed_forms_beat_random_search(seed: int) -> None:
    loss, mean_gradient, mean_loss, rng = problem(seed)
    x, y = feasible(loss, 4000, rng)
    gradients = (x @ loss.weights - y)[:, None] * x
    risk = loss.risk_warp(mean_loss, 200)
    assert allowed(loss, risk.x, risk.y)
    assert risk.warp == pytest.approx(abs(loss.loss(risk.x, risk.y) - mean_loss) / 201)
    assert risk.warp >= np.abs((y - x @ loss.weights) ** 2 / 2 - mean_loss).max() / 201
    gradient = loss.gradient_warp(mean_gradient, 200)
    assert allowed(loss, gradient.x, gradient.y)
    assert gradient.warp == pytest.approx(np.linalg.norm(gradient.gradient - mean_gradient) / 201)
    assert gradient.warp >= np.linalg.norm(gradients - mean_gradient, axis=1).max() / 201
    root = rng.standard_normal((loss.weights.size, loss.weights.size))
    covariance = root @ root.T + 0.1 * np.eye(loss.weights.size)
    clip = 0.9 * loss.x_bound * loss.y_bound
    law = loss.distribution_warp(covariance, clip)
    clipped = gradients * np.minimum(1, clip / np.linalg.norm(gradients, axis=1))[:, None]
    assert allowed(loss, law.x, law.y)
    assert law.warp >= np.sqrt(((clipped @ np.linalg.inv(covariance)) * clipped).sum(1)).max()


def test_a_small_risk_is_moved_most_by_a_fitted_record_only_if_it_is_large() -> None:
    loss = SquareLoss(weights=np.array([1.0, 0.0]), x_bound=1.0, y_bound=1.0)
    assert loss.loss(loss.risk_warp(0.1, 9).x, loss.risk_warp(0.1, 9).y) == pytest.approx(2.0)
    assert loss.risk_warp(1.9, 9).warp == pytest.approx(0.19)


@pytest.mark.parametrize("seed", range(5))
def test_ascent_finds_the_closed_form(seed: int) -> None:
    """The general way on the problem whose answer is known; several starts, because the warp is not concave."""
    loss, mean_gradient, _, rng = problem(seed)
    w, g = torch.from_numpy(loss.weights), torch.from_numpy(mean_gradient)

    def warp(record: torch.Tensor) -> torch.Tensor:
        x, y = record[:-1], record[-1]
        weights = w.clone().requires_grad_()
        value = (y - x @ weights) ** 2 / 2
        (gradient,) = torch.autograd.grad(value, weights, create_graph=True)
        return (gradient - g).norm() / 201

    def project(record: torch.Tensor) -> torch.Tensor:
        x, y = record[:-1], record[-1:]
        x = x * (loss.x_bound / x.norm()).clamp(max=1.0)
        return torch.cat([x, y.clamp(-loss.y_bound, loss.y_bound)])

    starts = [torch.from_numpy(rng.standard_normal(loss.weights.size + 1)) for _ in range(6)]
    found = max(ascend(warp, start, project, steps=150)[1] for start in starts)
    best = loss.gradient_warp(mean_gradient, 200).warp
    assert 0.995 * best <= found <= best * (1 + 1e-6)


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="finite vector"):
        SquareLoss(weights=np.array([[1.0]]), x_bound=1.0, y_bound=1.0)
    with pytest.raises(UsageError, match="positive"):
        SquareLoss(weights=np.array([1.0]), x_bound=0.0, y_bound=1.0)
    loss = SquareLoss(weights=np.array([1.0, 0.0]), x_bound=1.0, y_bound=1.0)
    with pytest.raises(UsageError, match="positive definite"):
        loss.distribution_warp(np.zeros((2, 2)), 1.0)
    with pytest.raises(UsageError, match="canary"):
        audit_step(np.ones((2, 2)), np.ones((2, 2)), np.zeros(2), np.zeros(2), clip=1.0, noise_multiplier=1.0)
