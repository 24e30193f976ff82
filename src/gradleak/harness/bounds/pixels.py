"""Pictures are no list. Beside the chain for a list of candidates stands the floor for a continuous secret: the mean squared error
per pixel that no attacker beats, whatever it knows of the prior. Must not know how it is shown.

    E‖x̂ - x‖²/d ≥ tr((E[I] + 1/τ²)⁻¹)/d,   I = J_cᵀJ_c/(zC)²     (van Trees)

with J_c the Jacobian of the *clipped* gradient and x normal around the mean picture with standard deviation τ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.mechanics.derivatives.jacobian import update_jacobian
from gradleak.mechanics.derivatives.quadrature import inverse_trace, signs

POINTS, PROBES, STEPS = 3, 4, 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Floor:
    """The floor at one noise level.

    Attributes:
        share: lower end of the floor's root, in units of τ: 1 means that no attacker does better than the mean picture.
        mean_square: the Lanczos rule's lower value, per pixel. standard_error: over random probes.
        prior_std: τ. points: draws from the prior that E[I] is estimated from.
    """

    share: float
    mean_square: float
    standard_error: float
    prior_std: float
    points: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorFloor:
    """E[I] as a product, for a clip and a model; any noise level can be asked for.

    Guarantees:
        Gauss quadrature errs downward, the safe side of a floor. E[I] is a mean over a few draws: estimated, not certified.
    """

    trainer: ClientTrainer
    points: tuple[Tensor, ...]
    labels: Tensor
    max_norm: float
    prior_std: float
    seed: int

    @staticmethod
    def of(trainer: ClientTrainer, batch: Batch, max_norm: float, seed: int) -> ErrorFloor:
        """The prior's mean and τ are those of the listed pictures."""
        rng = derive(seed, "error floor", "points")
        center = batch.inputs.mean(0, keepdim=True)
        spread = float((batch.inputs - center).square().mean().sqrt())
        points = tuple(center + spread * torch.randn(center.shape, generator=rng) for _ in range(POINTS))
        return ErrorFloor(
            trainer=trainer,
            points=points,
            labels=batch.labels[torch.randint(batch.size, (POINTS,), generator=rng)],
            max_norm=max_norm,
            prior_std=spread,
            seed=seed,
        )

    def at(self, noise_multiplier: float) -> Floor:
        """Of one release with noise z·C."""
        # (A/z² + 1/τ²)⁻¹ = z²·(A + z²/τ²)⁻¹ with A = E[J_cᵀJ_c]/C².
        shift = (noise_multiplier / self.prior_std) ** 2
        like = self.points[0]
        probes = signs(PROBES, tuple(like.shape), derive(self.seed, "error floor", "probes"), like)
        found = inverse_trace(self._product, probes, shift=shift, steps=min(STEPS, like.numel()))
        scale = noise_multiplier**2 / like.numel()
        lower = max(0.0, found.lower * scale)
        return Floor(
            share=(lower**0.5) / self.prior_std,
            mean_square=lower,
            standard_error=found.standard_error * scale,
            prior_std=self.prior_std,
            points=len(self.points),
        )

    def _product(self, direction: Tensor) -> Tensor:
        total = torch.zeros_like(direction)
        for place, point in enumerate(self.points):
            targets = self.trainer.subject.loss.targets(
                self.labels[place : place + 1], self.trainer.subject.classes
            ).to(point.dtype)
            jacobian = update_jacobian(self.trainer, point, targets, torch.ones(1, dtype=torch.bool))
            gradient = jacobian.update
            moved = self._clipped(jacobian.forward(direction), gradient)
            # The derivative of the clip is symmetric, so its adjoint is itself.
            total += jacobian.adjoint(self._clipped(moved, gradient))
        return total / (len(self.points) * self.max_norm**2)

    def _clipped(self, change: Mapping[str, Tensor], gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the clip makes of a small change: shortened by C/‖g‖, and blind to changes of length, where it is active."""
        length = torch.stack([each.square().sum() for each in gradient.values()]).sum().sqrt()
        if float(length) <= self.max_norm:
            return dict(change)
        along = torch.stack([(change[name] * gradient[name]).sum() for name in gradient]).sum() / length**2
        return {name: self.max_norm / length * (change[name] - along * gradient[name]) for name in gradient}
