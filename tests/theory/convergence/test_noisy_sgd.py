"""The convergence bounds beside what a run under noise does: never crossed, not vacuous, and tight where clipping bites."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from gradleak.core.errors import SpecError
from gradleak.privacy.training_cost import sgd_bounds
from gradleak.theory.convergence.noisy_sgd import AttentionScores, LogisticRegression, run

pytestmark = pytest.mark.oracle

RECORDS, PARAMETERS, STEPS, BATCH = 500, 20, 1000, 50


def problem(strength: float = 0.0) -> tuple[LogisticRegression, torch.Tensor, float]:
    """Unit features, labels of a logistic model with ‖w‖ = 5; the minimizer and its loss."""
    rng = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(RECORDS, PARAMETERS, generator=rng).double(), dim=1)
    w = 5 * torch.nn.functional.normalize(torch.randn(PARAMETERS, generator=rng).double(), dim=0)
    y = torch.where(torch.rand(RECORDS, generator=rng) < torch.sigmoid(x @ w), 1.0, -1.0).double()
    found = LogisticRegression(x, y, strength)

    def both(at: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(at).unsqueeze(0)
        return float(found.loss(point)), found.gradients(point)[0].mean(0).numpy()

    best = minimize(both, np.zeros(PARAMETERS), jac=True, method="L-BFGS-B", options={"gtol": 1e-10, "ftol": 1e-15})
    return found, torch.tensor(best.x), float(best.fun)


def test_gradients_are_those_of_the_loss() -> None:
    for each in (problem(0.1)[0], attention_problem()):
        w = torch.randn(2, each.parameters, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
        (slope,) = torch.autograd.grad(each.loss(w).sum(), w)
        assert torch.allclose(each.gradients(w.detach()).mean(1), slope, atol=1e-12)


@pytest.mark.parametrize("noise_multiplier", [0.0, 5.0, 20.0])
def test_convex(noise_multiplier: float) -> None:
    p, best, least = problem()
    energy = sgd_bounds.noise_energy(noise_multiplier, 1.0, BATCH, PARAMETERS)
    distance = float(best.norm())
    rate = sgd_bounds.convex_learning_rate(distance=distance, gradient_bound=1.0, steps=STEPS, energy=energy)
    bound = sgd_bounds.convex(distance=distance, gradient_bound=1.0, steps=STEPS, learning_rate=rate, energy=energy)
    found = run(
        p,
        torch.zeros(PARAMETERS),
        learning_rates=torch.full((STEPS,), rate),
        batch_size=BATCH,
        clip_norm=1.0,
        noise_multiplier=noise_multiplier,
        repeats=4,
        rng=torch.Generator().manual_seed(2),
    )
    assert float(found.clipped.max()) == 0.0
    excess = float(found.average_loss[-1]) - least
    assert bound / 100 < excess <= bound


@pytest.mark.parametrize("noise", [5.0, 20.0])
def test_strongly_convex(noise: float) -> None:
    """Steps 2/(λ(t+1)) are large at first, so G is the largest gradient that the run met: the clip is never active."""
    strength = 0.05
    p, _, least = problem(strength)
    rates = 2 / (strength * (torch.arange(STEPS).double() + 2))
    clip = 8.0
    found = run(
        p,
        torch.zeros(PARAMETERS),
        learning_rates=rates,
        batch_size=BATCH,
        clip_norm=clip,
        noise_multiplier=noise / clip,
        repeats=4,
        rng=torch.Generator().manual_seed(3),
    )
    assert float(found.clipped.max()) == 0.0
    energy = sgd_bounds.noise_energy(noise, 1.0, BATCH, PARAMETERS)
    largest = float((found.gradient_square + found.sampling_variance).max()) ** 0.5
    bound = sgd_bounds.strongly_convex(gradient_bound=largest, strong_convexity=strength, steps=STEPS, energy=energy)
    excess = float(found.weighted_loss[-1]) - least
    assert bound / 1000 < excess <= bound


@pytest.mark.parametrize(
    ("noise_multiplier", "clip", "tight"),
    [(0.0, 1.0, 5.0), (5.0, 1.0, 5.0), (20.0, 1.0, 5.0), (5.0, 0.2, 2.5), (5.0, 0.05, 1.3)],
)
def test_smooth_with_measured_bias(noise_multiplier: float, clip: float, tight: float) -> None:
    """E1: the bound is within ``tight`` of the measured value; 1.3 where clipping is what limits it."""
    p, _, least = problem()
    energy = sgd_bounds.noise_energy(noise_multiplier, clip, BATCH, PARAMETERS)
    gap = math.log(2) - least
    rate = sgd_bounds.smooth_learning_rate(
        initial_gap=gap, smoothness=p.smoothness, steps=STEPS, sampling_variance=clip**2 / BATCH, energy=energy
    )
    found = run(
        p,
        torch.zeros(PARAMETERS),
        learning_rates=torch.full((STEPS,), rate),
        batch_size=BATCH,
        clip_norm=clip,
        noise_multiplier=noise_multiplier,
        repeats=4,
        rng=torch.Generator().manual_seed(4),
    )
    bound = sgd_bounds.smooth(
        initial_gap=gap,
        smoothness=p.smoothness,
        steps=STEPS,
        learning_rate=rate,
        sampling_variance=float(found.sampling_variance.mean()),
        energy=energy,
        bias_square=float(found.bias_square.mean()),
    )
    measured = float(found.gradient_square.mean())
    assert measured <= bound.total <= tight * measured
    if clip == 0.05:
        # Without the measured bias the same formula would be crossed: "no clipping active" is a condition, not a detail.
        assert float(found.clipped.mean()) > 0.5
        assert bound.total - bound.bias < measured


def attention_problem() -> AttentionScores:
    rng = torch.Generator().manual_seed(5)
    x, b = torch.randn(2, 16, 4, 3, generator=rng).double()
    return AttentionScores(x, b, torch.randn(3, 3, generator=rng).double() / math.sqrt(3), 1 / math.sqrt(3))


@pytest.mark.parametrize("noise", [0.0, 0.2, 1.0])
def test_attention_weights_under_the_polynomial_constant(noise: float) -> None:
    """The non-convex bound with L_W: an honest certificate for attention, within a factor of a hundred."""
    p = attention_problem()
    steps, batch, clip = 400, 8, 40.0
    energy = sgd_bounds.noise_energy(noise, 1.0, 1.0, p.parameters)
    start = torch.zeros(p.parameters, dtype=torch.float64)
    gap = float(p.loss(start.unsqueeze(0)))
    rate = 1 / p.smoothness
    found = run(
        p,
        start,
        learning_rates=torch.full((steps,), rate),
        batch_size=batch,
        clip_norm=clip,
        noise_multiplier=noise * batch / clip,
        repeats=20,
        rng=torch.Generator().manual_seed(6),
    )
    assert float(found.clipped.max()) == 0.0
    bound = sgd_bounds.smooth(
        initial_gap=gap,
        smoothness=p.smoothness,
        steps=steps,
        learning_rate=rate,
        sampling_variance=float(found.sampling_variance.mean()),
        energy=energy,
    ).total
    measured = float(found.gradient_square.mean())
    assert bound / 100 < measured <= bound


def test_wrong_use() -> None:
    p, _, _ = problem()
    common = {"learning_rates": torch.ones(2), "repeats": 1, "rng": torch.Generator()}
    with pytest.raises(SpecError, match="batch_size"):
        run(p, torch.zeros(PARAMETERS), batch_size=0, clip_norm=1.0, noise_multiplier=0.0, **common)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="no clip"):
        run(p, torch.zeros(PARAMETERS), batch_size=5, clip_norm=math.inf, noise_multiplier=1.0, **common)  # type: ignore[arg-type]
