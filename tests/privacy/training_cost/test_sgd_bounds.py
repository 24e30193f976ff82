"""The SGD bounds against simulated runs on a logistic regression: never below the measured value, and tight where the notes
say so.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradleak.core.errors import UsageError
from gradleak.privacy.training_cost import sgd_bounds as bounds

pytestmark = pytest.mark.oracle

RECORDS, PARAMETERS, RADIUS = 500, 20, 5.0


class Logistic:
    """f(w) = mean log(1 + exp(-y⟨x, w⟩)) + λ‖w‖²/2 with ‖x‖ = 1, so that G = 1 and L = 1/4 without the regularizer."""

    def __init__(self, regularization: float = 0.0) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(RECORDS, PARAMETERS))
        self.x = x / np.linalg.norm(x, axis=1, keepdims=True)
        truth = rng.normal(size=PARAMETERS)
        truth *= RADIUS / np.linalg.norm(truth)
        self.y = np.where(rng.random(RECORDS) < 1 / (1 + np.exp(-self.x @ truth)), 1.0, -1.0)
        self.regularization = regularization
        self.smoothness = float(np.linalg.eigvalsh(self.x.T @ self.x / RECORDS)[-1]) / 4 + regularization

    def loss(self, w: np.ndarray) -> float:
        return float(np.logaddexp(0, -self.y * (self.x @ w)).mean() + self.regularization * (w @ w) / 2)

    def gradients(self, w: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        x, y = self.x[rows], self.y[rows]
        return -(y / (1 + np.exp(y * (x @ w))))[:, None] * x + self.regularization * w

    def minimum(self) -> np.ndarray:
        w = np.zeros(PARAMETERS)
        for _ in range(4000):
            w = w - self.gradients(w).mean(0) / self.smoothness
        return w


def clipped(gradients: np.ndarray, clip_norm: float) -> np.ndarray:
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    return gradients * np.minimum(1, clip_norm / np.maximum(norms, 1e-300))


@pytest.mark.parametrize("noise_multiplier", [0.0, 1.0, 5.0, 20.0])
def test_convex_bound_holds(noise_multiplier: float) -> None:
    problem, rng, batch, steps = Logistic(), np.random.default_rng(1), 50, 2000
    best = problem.minimum()
    distance = float(np.linalg.norm(best))
    energy = bounds.noise_energy(noise_multiplier, 1.0, batch, PARAMETERS)
    rate = bounds.convex_learning_rate(distance=distance, gradient_bound=1.0, steps=steps, energy=energy)
    bound = bounds.convex(distance=distance, gradient_bound=1.0, steps=steps, learning_rate=rate, energy=energy)
    assert bound == pytest.approx(distance * math.sqrt((1 + energy) / steps))
    w, total = np.zeros(PARAMETERS), np.zeros(PARAMETERS)
    for _ in range(steps):
        total += w
        rows = rng.choice(RECORDS, batch, replace=False)
        noise = math.sqrt(energy / PARAMETERS) * rng.normal(size=PARAMETERS)
        w = w - rate * (problem.gradients(w, rows).mean(0) + noise)
    measured = problem.loss(total / steps) - problem.loss(best)
    assert 0 < measured <= bound


@pytest.mark.parametrize("noise_multiplier", [0.0, 1.0, 5.0])
def test_convex_bound_says_something(noise_multiplier: float) -> None:
    """Not vacuous: below the excess loss at the start. With G = 1, the largest that a record could have, it is at noise 5 (.1627
    of .1630) hardly so; the second moment that the run really has makes the difference. At noise 20 it is vacuous either way.
    """
    problem, rng, batch, steps = Logistic(), np.random.default_rng(1), 50, 2000
    best = problem.minimum()
    gap, distance = problem.loss(np.zeros(PARAMETERS)) - problem.loss(best), float(np.linalg.norm(best))
    energy = bounds.noise_energy(noise_multiplier, 1.0, batch, PARAMETERS)
    # At w = 0 every gradient has norm 1/2; no look ahead is needed for the learning rate.
    rate = bounds.convex_learning_rate(distance=distance, gradient_bound=0.5, steps=steps, energy=energy)
    w, total, largest = np.zeros(PARAMETERS), np.zeros(PARAMETERS), 0.0
    for _ in range(steps):
        total += w
        gradients = problem.gradients(w)
        largest = max(largest, float((gradients**2).sum(1).mean()))
        noise = math.sqrt(energy / PARAMETERS) * rng.normal(size=PARAMETERS)
        w = w - rate * (gradients[rng.choice(RECORDS, batch, replace=False)].mean(0) + noise)
    bound = bounds.convex(
        distance=distance, gradient_bound=math.sqrt(largest), steps=steps, learning_rate=rate, energy=energy
    )
    measured = problem.loss(total / steps) - problem.loss(best)
    assert 0 < measured <= bound < 0.75 * gap


@pytest.mark.parametrize("noise_multiplier", [5.0, 20.0])
def test_strongly_convex_bound_holds(noise_multiplier: float) -> None:
    strength = 0.05
    problem, rng, batch, steps = Logistic(strength), np.random.default_rng(2), 50, 2000
    best = problem.minimum()
    energy = bounds.noise_energy(noise_multiplier, 1.0, batch, PARAMETERS)
    w, total, largest = np.zeros(PARAMETERS), np.zeros(PARAMETERS), 0.0
    for t in range(1, steps + 1):
        total += t * w
        gradients = problem.gradients(w, rng.choice(RECORDS, batch, replace=False))
        largest = max(largest, float(np.linalg.norm(gradients.mean(0))))
        w = w - 2 / (strength * (t + 1)) * (
            gradients.mean(0) + math.sqrt(energy / PARAMETERS) * rng.normal(size=PARAMETERS)
        )
    measured = problem.loss(2 * total / (steps * (steps + 1))) - problem.loss(best)
    bound = bounds.strongly_convex(gradient_bound=largest, strong_convexity=strength, steps=steps, energy=energy)
    assert 0 < measured <= bound


@pytest.mark.parametrize(
    ("noise_multiplier", "clip_norm", "most"), [(0.0, 1.0, 4.0), (5.0, 1.0, 4.0), (20.0, 1.0, 4.0), (5.0, 0.05, 1.3)]
)
def test_smooth_bound_with_measured_bias(noise_multiplier: float, clip_norm: float, most: float) -> None:
    """The fourth case clips nearly every gradient: there the bound is nothing but the measured bias, and nearly tight."""
    problem, rng, batch, steps = Logistic(), np.random.default_rng(3), 50, 2000
    energy = bounds.noise_energy(noise_multiplier, clip_norm, batch, PARAMETERS)
    start = np.zeros(PARAMETERS)
    spread = problem.gradients(start)
    variance = float(((spread - spread.mean(0)) ** 2).sum(1).mean()) / batch
    gap = problem.loss(start) - problem.loss(problem.minimum())
    rate = bounds.smooth_learning_rate(
        initial_gap=gap, smoothness=problem.smoothness, steps=steps, sampling_variance=variance, energy=energy
    )
    w, squares, bias, variances = start, [], [], []
    for _ in range(steps):
        gradients = problem.gradients(w)
        mean = gradients.mean(0)
        squares.append(float(mean @ mean))
        bias.append(float(((clipped(gradients, clip_norm).mean(0) - mean) ** 2).sum()))
        variances.append(float(((gradients - mean) ** 2).sum(1).mean()) / batch)
        rows = rng.choice(RECORDS, batch, replace=False)
        w = w - rate * (
            clipped(gradients[rows], clip_norm).mean(0) + math.sqrt(energy / PARAMETERS) * rng.normal(size=PARAMETERS)
        )
    bound = bounds.smooth(
        initial_gap=gap,
        smoothness=problem.smoothness,
        steps=steps,
        learning_rate=rate,
        sampling_variance=float(np.mean(variances)),
        energy=energy,
        bias_square=float(np.mean(bias)),
    )
    measured = float(np.mean(squares))
    assert measured <= bound.total <= most * measured


def test_the_floor_of_private_training() -> None:
    """E2 of the project's notes: R G √P/(μN) = .0447, and .0671 at T = 10⁴."""
    setting = {"distance": 5.0, "gradient_bound": 1.0, "parameters": 20, "mu": 1.0, "records": 500}
    assert bounds.private_convex_floor(**setting) == pytest.approx(0.0447, abs=5e-5)
    assert bounds.private_convex(**setting, steps=10_000) == pytest.approx(0.0671, abs=5e-5)
    assert bounds.private_convex(**setting, steps=10**12) == pytest.approx(
        bounds.private_convex_floor(**setting), rel=1e-4
    )


def test_private_convex_is_the_convex_bound_with_the_noise_that_mu_asks_for() -> None:
    steps, mu, records, distance, norm = 4000, 0.7, 500, 5.0, 2.0
    energy = bounds.noise_energy(math.sqrt(steps) / mu, norm, records, PARAMETERS)
    rate = bounds.convex_learning_rate(distance=distance, gradient_bound=norm, steps=steps, energy=energy)
    assert bounds.private_convex(
        distance=distance, gradient_bound=norm, steps=steps, parameters=PARAMETERS, mu=mu, records=records
    ) == pytest.approx(
        bounds.convex(distance=distance, gradient_bound=norm, steps=steps, learning_rate=rate, energy=energy)
    )
    floor = bounds.private_strongly_convex_floor(
        gradient_bound=norm, strong_convexity=0.05, parameters=PARAMETERS, mu=mu, records=records
    )
    many = 10**9
    energy = bounds.noise_energy(math.sqrt(many) / mu, norm, records, PARAMETERS)
    assert bounds.strongly_convex(
        gradient_bound=norm, strong_convexity=0.05, steps=many, energy=energy
    ) == pytest.approx(floor, rel=1e-3)


def test_tuned_rates_are_best() -> None:
    kwargs = {"initial_gap": 0.7, "smoothness": 2.0, "steps": 500, "sampling_variance": 0.1, "energy": 3.0}
    rate = bounds.smooth_learning_rate(**kwargs)
    best = bounds.smooth(**kwargs, learning_rate=rate).total
    assert all(best <= bounds.smooth(**kwargs, learning_rate=rate * f).total for f in (0.5, 0.9, 1.1, 2.0))
    quiet = {**kwargs, "energy": 0.0, "sampling_variance": 0.0}
    assert bounds.smooth_learning_rate(**quiet) == 0.5


def test_local_energy_counts_only_curved_directions() -> None:
    assert bounds.local_noise_energy(20.0, 20, positive_trace=5.0, smoothness=2.0) == pytest.approx(2.5)
    assert bounds.local_noise_energy(20.0, 20, positive_trace=1e9, smoothness=2.0) == 20.0


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(UsageError, match=r"learning_rate=0.6 .* 1/L"):
        bounds.smooth(initial_gap=1, smoothness=2, steps=5, learning_rate=0.6, sampling_variance=0, energy=0)
    with pytest.raises(UsageError, match="noise_multiplier"):
        bounds.noise_energy(-1, 1, 1, 1)
    with pytest.raises(UsageError, match="steps"):
        bounds.strongly_convex(gradient_bound=1, strong_convexity=1, steps=0, energy=0)
    with pytest.raises(UsageError, match="gradient_bound"):
        bounds.convex_learning_rate(distance=1, gradient_bound=0, steps=1, energy=0)
