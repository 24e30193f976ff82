"""Why: a step is audited with the record that it should hide and can least: the one that distorts it most. Inserting such a
record, a *trigger*, is the idea of BadGD; here the auditor plays that party. Must not know how releases are attacked.

Of BadGD only the abstract was read and no code exists, so the definitions below are ours. S is a data set of n records with
mean loss R_S and mean gradient g_S at the current weights w; z̃ is the trigger, added to S:

- *risk warp*: |R_{S+z̃} - R_S| = |l(w; z̃) - R_S| / (n + 1)
- *gradient warp*: |g_{S+z̃} - g_S| = |∇l(w; z̃) - g_S| / (n + 1)
- *gradient-distribution warp*: the distance between the laws of the released gradient with and without z̃. For a clipped
  sum with noise covariance Σ both are Gaussian with the same Σ, and their trade-off function is that of
  μ = (Δᵀ Σ⁻¹ Δ)^{1/2} with Δ = clip_C(∇l(w; z̃)).

Closed forms are for the square loss l = (y - x·w)² / 2 on |x| ≤ B_x, |y| ≤ B_y; for other losses, ``ascend``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

from gradleak.core.errors import UsageError
from gradleak.privacy.bounds.candidates import Matrix

_ANGLES = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Trigger:
    """A record for the square loss.

    Attributes:
        x: ``[d]``; y: target.
        gradient: of its loss by the weights, ``[d]``.
        warp: what the trigger maximizes.
    """

    x: Matrix
    y: float
    gradient: Matrix
    warp: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SquareLoss:
    """The square loss at weights w with the records that are allowed.

    Attributes:
        weights: w ``[d]``.
        x_bound, y_bound: B_x, B_y, positive.

    Raises:
        UsageError: if a bound is not positive or the weights are no finite vector.
    """

    weights: Matrix
    x_bound: float
    y_bound: float

    def __post_init__(self) -> None:
        if np.ndim(self.weights) != 1 or not np.isfinite(self.weights).all() or np.size(self.weights) == 0:
            raise UsageError(f"weights must be a finite vector, got shape {np.shape(self.weights)}.")
        if not (self.x_bound > 0 and self.y_bound > 0):
            raise UsageError(f"The bounds must be positive, got x_bound={self.x_bound}, y_bound={self.y_bound}.")

    def loss(self, x: Matrix, y: float) -> float:
        return float((y - x @ self.weights) ** 2 / 2)

    def gradient(self, x: Matrix, y: float) -> Matrix:
        return (x @ self.weights - y) * x

    def risk_warp(self, mean_loss: float, records: int) -> Trigger:
        """The record that moves the mean loss most.

        The largest loss, (B_y + B_x|w|)²/2 at x = -B_x w/|w|, y = B_y, or a record of loss zero, if R_S is nearer to the
        largest loss than to zero.
        """
        worst, toward = (self.y_bound + self.x_bound * self._length()) ** 2 / 2, -self._unit()
        if worst - mean_loss >= mean_loss:
            return self._trigger(self.x_bound * toward, self.y_bound, (worst - mean_loss) / (records + 1))
        return self._trigger(np.zeros_like(self.weights), 0.0, mean_loss / (records + 1))

    def gradient_warp(self, mean_gradient: Matrix, records: int) -> Trigger:
        """The record that moves the mean gradient most.

        Along a direction u with a = u·w ≥ 0 the gradients of all allowed records are c u with c from a closed interval:
        at most B_x² a + B_x B_y, at least -(B_x B_y - B_x² a), or -B_y²/(4a) once B_y < 2 a B_x. The distance |c u - g_S|
        is convex in c, so an end is best; it depends on u through u·w and u·g_S only, and linearly on the latter, so the
        best u lies in the plane of w and g_S. That leaves one angle, searched on a grid and polished.
        """
        frame = self._plane(mean_gradient)

        def best_end(angle: float) -> tuple[float, Matrix, float]:
            u = math.cos(angle) * frame[0] + math.sin(angle) * frame[1]
            ends = self._ends(u)
            warps = [float(np.linalg.norm(self.gradient(x, y) - mean_gradient)) for x, y in ends]
            place = int(np.argmax(warps))
            return warps[place], ends[place][0], ends[place][1]

        angles = np.linspace(0.0, 2 * math.pi, _ANGLES, endpoint=False)
        first = float(angles[int(np.argmax([best_end(angle)[0] for angle in angles]))])
        width = 2 * math.pi / _ANGLES
        polished = minimize_scalar(
            lambda angle: -best_end(angle)[0], bounds=(first - width, first + width), method="bounded"
        )
        refined = best_end(float(polished.x))  # pyright: ignore[reportAttributeAccessIssue]
        warp, x, y = max(best_end(first), refined, key=lambda found: found[0])
        return self._trigger(x, y, warp / (records + 1))

    def distribution_warp(self, covariance: Matrix, clip: float) -> Trigger:
        """The record whose clipped gradient is easiest to tell from the noise: μ = (Δᵀ Σ⁻¹ Δ)^{1/2}.

        For C ≤ B_x B_y every direction holds a record whose gradient is at least C long, so clipping leaves only the
        direction to choose: that of the least noise, the last eigenvector of Σ. Beyond that the best of the eigenvectors
        and of the gradient-warp point is taken: a lower bound on the warp, not its maximum.

        Args:
            covariance: Σ ``[d d]`` of the released sum of gradients, positive definite.
            clip: C, positive.

        Raises:
            UsageError: if Σ is not positive definite or C not positive.
        """
        values, vectors = np.linalg.eigh(covariance)
        if values[0] <= 0 or not clip > 0:
            raise UsageError("The gradient-distribution warp needs a positive definite covariance and a positive clip.")
        points = [end for column in vectors.T for end in self._ends(column)]
        points.append((-self.x_bound * self._unit(), self.y_bound))
        found = []
        for x, y in points:
            delta = _clip(self.gradient(x, y), clip)
            found.append(self._trigger(x, y, math.sqrt(float(delta @ np.linalg.solve(covariance, delta)))))
        return max(found, key=lambda trigger: trigger.warp)

    def _ends(self, u: Matrix) -> list[tuple[Matrix, float]]:
        """The records whose gradients are the two ends of the interval along the line of ``u``."""
        a = float(u @ self.weights)
        u, a = (u, a) if a >= 0 else (-u, -a)
        inner = self.x_bound if 2 * a * self.x_bound <= self.y_bound else self.y_bound / (2 * a)
        return [(self.x_bound * u, -self.y_bound), (inner * u, self.y_bound)]

    def _plane(self, other: Matrix) -> tuple[Matrix, Matrix]:
        one = self._unit()
        rest = other - (other @ one) * one
        length = float(np.linalg.norm(rest))
        if length <= 1e-12 * (1 + float(np.linalg.norm(other))):
            return one, np.zeros_like(one)
        return one, rest / length

    def _length(self) -> float:
        return float(np.linalg.norm(self.weights))

    def _unit(self) -> Matrix:
        length = self._length()
        return self.weights / length if length > 0 else np.eye(self.weights.size)[0]

    def _trigger(self, x: Matrix, y: float, warp: float) -> Trigger:
        return Trigger(x=x, y=y, gradient=self.gradient(x, y), warp=warp)


def ascend(
    warp: Callable[[Tensor], Tensor],
    start: Tensor,
    project: Callable[[Tensor], Tensor],
    *,
    steps: int = 200,
    rate: float = 0.1,
) -> tuple[Tensor, float]:
    """Projected ascent to a trigger for any differentiable loss: the way where no closed form is known.

    Steps of decreasing length along the normalized gradient, each followed by the projection; the best point is kept.

    Args:
        warp: the scalar to maximize, differentiable in the record; such as the norm of a gradient made with
            ``create_graph=True``.
        start: a record, or its embedding.
        project: the nearest allowed record.
        steps: at least 1; rate: length of the first step in units of the start's norm, or of 1 if that is zero.

    Returns:
        The record and its warp: a lower bound on the largest one.
    """
    unit = float(start.norm()) or 1.0
    point = project(start.detach())
    best, best_value = point, -math.inf
    for step in range(steps + 1):
        point = point.detach().requires_grad_()
        with torch.enable_grad():
            value = warp(point)
            (slope,) = torch.autograd.grad(value, point)
        reached = float(value.detach())
        if reached > best_value:
            best, best_value = point.detach(), reached
        length = float(slope.norm())
        if step == steps or length == 0.0:
            break
        point = project(point.detach() + rate * unit * (1 - step / steps) * slope / length)
    return best, best_value


def _clip(gradient: Matrix, clip: float) -> Matrix:
    return gradient * min(1.0, clip / max(float(np.linalg.norm(gradient)), np.finfo(np.float64).tiny))
