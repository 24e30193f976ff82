"""The other side of ε, for one training plan: what its noise costs a training, as a bound and as it was measured, over the noise
multipliers around the plan's. Must not know how it is shown.

The problem is public and fixed: logistic regression, the largest for which every constant of the bound is known exactly and not
estimated. It shows how bound and training move with the noise of *this* plan; it is not the plan's own model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError
from gradleak.core.rng import derive
from gradleak.privacy.accounting.accountant import account
from gradleak.privacy.plan.plan import Plan
from gradleak.privacy.targets.calibrate import scaled
from gradleak.privacy.training_cost import sgd_bounds
from gradleak.privacy.training_cost.clip_choice import Suggestion, Training, suggest
from gradleak.privacy.training_cost.sgd_bounds import SmoothBound
from gradleak.theory.convergence.noisy_sgd import LogisticRegression, Run, run

FACTORS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""Noise multipliers of the panel, in units of the plan's."""
RECORDS, PARAMETERS, RADIUS = 500, 20, 5.0
REPEATS = 4
MOST_STEPS = 5000


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """One noise level.

    Attributes:
        epsilon: of the whole plan with this noise; infinite without a guarantee.
        clip_norm: C, chosen for this noise (``privacy.convergence.suggest``) from the norms at the start. clipped: share of
            gradients along the run that were longer.
        bound: on the mean squared gradient norm, its four parts; sampling and clipping bias are those measured along the run.
        measured: mean squared gradient norm of the run.
        excess: loss of the last iterate above the least loss.
    """

    noise_multiplier: float
    epsilon: float
    clip_norm: float
    clipped: float
    learning_rate: float
    bound: SmoothBound
    measured: float
    excess: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCost:
    """The panel of one plan. ``without_noise`` is the excess loss of the same training at z = 0."""

    problem: str
    steps: int
    batch_size: int
    delta: float
    plan_multiplier: float
    without_noise: float
    levels: tuple[Cost, ...]

    def to_plain(self) -> dict[str, Any]:
        plain = asdict(self)
        for level, cost in zip(plain["levels"], self.levels, strict=True):
            level["bound"]["total"] = cost.bound.total
            level["epsilon"] = cost.epsilon if math.isfinite(cost.epsilon) else None
        return plain


def training_cost(
    plan: Plan,
    *,
    factors: Sequence[float] = FACTORS,
    seed: int = 0,
    progress: Callable[[float, str], None] = lambda fraction, message: None,
) -> TrainingCost:
    """Runs the plan's steps on the fixed problem at every noise level.

    Args:
        plan: its steps, sampling rate (the batch is that share of the problem's records) and noise, all phases scaled alike.

    Raises:
        UsageError: if the plan has no noise or more steps than are simulated.

    Guarantees:
        ``bound.total`` is an upper bound on the expectation of ``measured``: the problem is smooth with the L that is used, and
        what enters as measured is measured along the very run. Batches have a fixed size.
    """
    if plan.steps > MOST_STEPS or plan.least_noise == 0:
        raise UsageError(
            f"The panel trains for the plan's steps with its noise: give 1 to {MOST_STEPS} steps and a positive noise multiplier, "
            f"not {plan.steps} and {plan.least_noise:g}."
        )
    problem, least = _problem(seed)
    batch = max(1, round(plan.sampling_rate * RECORDS))
    setting = Training(
        parameters=PARAMETERS,
        batch_size=batch,
        steps=plan.steps,
        smoothness=problem.smoothness,
        initial_gap=math.log(2) - least,
    )
    levels: list[Cost] = []
    for place, factor in enumerate(factors):
        at = scaled(plan, factor)
        progress(place / len(factors), f"training at noise multiplier {at.least_noise:.3g}")
        levels.append(_level(problem, least, at, setting, seed))
    return TrainingCost(
        problem=f"logistic regression, {RECORDS} synthetic records of {PARAMETERS} features",
        steps=plan.steps,
        batch_size=batch,
        delta=plan.delta,
        plan_multiplier=plan.least_noise,
        without_noise=float(_run(problem, setting, 0.0, seed)[1].loss[-1]) - least,
        levels=tuple(levels),
    )


def _level(problem: LogisticRegression, least: float, plan: Plan, setting: Training, seed: int) -> Cost:
    z = plan.least_noise
    chosen, found = _run(problem, setting, z, seed)
    return Cost(
        noise_multiplier=z,
        epsilon=account(plan).epsilon,
        clip_norm=chosen.clip_norm,
        clipped=float(found.clipped.mean()),
        learning_rate=chosen.learning_rate,
        bound=sgd_bounds.smooth(
            initial_gap=setting.initial_gap,
            smoothness=setting.smoothness,
            steps=setting.steps,
            learning_rate=chosen.learning_rate,
            sampling_variance=float(found.sampling_variance.mean()),
            energy=sgd_bounds.noise_energy(z, chosen.clip_norm, setting.batch_size, PARAMETERS),
            bias_square=float(found.bias_square.mean()),
        ),
        measured=float(found.gradient_square.mean()),
        excess=float(found.loss[-1]) - least,
    )


def _run(problem: LogisticRegression, setting: Training, z: float, seed: int) -> tuple[Suggestion, Run]:
    """The clip norm and the learning rate that are best for the bound, and the training with them."""
    norms = problem.gradients(torch.zeros(1, PARAMETERS, dtype=torch.float64))[0].norm(dim=1).tolist()
    chosen = suggest(norms, z, setting)
    found = run(
        problem,
        torch.zeros(PARAMETERS),
        learning_rates=torch.full((setting.steps,), chosen.learning_rate, dtype=torch.float64),
        batch_size=setting.batch_size,
        clip_norm=chosen.clip_norm,
        noise_multiplier=z,
        repeats=REPEATS,
        rng=derive(seed, "training cost", repr(z)),
    )
    return chosen, found


def _problem(seed: int) -> tuple[LogisticRegression, float]:
    """Features of unit length, labels drawn from a logistic model of weight norm ``RADIUS``; and the least loss."""
    rng = derive(seed, "training cost", "problem")
    x = torch.nn.functional.normalize(torch.randn(RECORDS, PARAMETERS, generator=rng).double(), dim=1)
    w = RADIUS * torch.nn.functional.normalize(torch.randn(PARAMETERS, generator=rng).double(), dim=0)
    y = torch.where(torch.rand(RECORDS, generator=rng) < torch.sigmoid(x @ w), 1.0, -1.0).double()
    problem = LogisticRegression(x, y)

    def both(at: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(at).unsqueeze(0)
        return float(problem.loss(point)), problem.gradients(point)[0].mean(0).numpy()

    best = minimize(both, np.zeros(PARAMETERS), jac=True, method="L-BFGS-B", options={"gtol": 1e-10, "ftol": 1e-15})
    return problem, float(best.fun)
