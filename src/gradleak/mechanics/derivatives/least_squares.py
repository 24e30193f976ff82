"""Recovery by matching is a least-squares problem, and its Gauss–Newton matrix JᵀJ is positive semidefinite by
construction while the full Hessian is not. Levenberg–Marquardt from many starts at once. Must not know what is matched.

    φ(x) = ½ ‖r(x)‖²,   (JᵀJ + μ D) δ = −Jᵀ r,   x ← x + δ if φ falls
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Linearized(Protocol):
    """The problem at one point of every start."""

    @property
    def value(self) -> Float[Tensor, " starts"]: ...

    @property
    def slope(self) -> Float[Tensor, "starts unknowns"]: ...

    @property
    def curvature(self) -> Float[Tensor, " starts"]:
        """A typical size of JᵀJ, the unit of the damping."""
        ...

    def step(self, damping: Float[Tensor, " starts"]) -> Float[Tensor, "starts unknowns"]:
        """The δ that solves (JᵀJ + μ) δ = −Jᵀ r, or nearly so."""
        ...


class LeastSquares(Protocol):
    """Independent problems, one per start, of the same size."""

    def at(self, x: Float[Tensor, "starts unknowns"]) -> Linearized: ...

    def value(self, x: Float[Tensor, "starts unknowns"]) -> Float[Tensor, " starts"]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LevenbergMarquardt:
    """Damped Gauss–Newton.

    Attributes:
        iterations: at most so many linearizations.
        damping: the first μ in units of the curvature; 0 is plain Gauss–Newton, every step taken.

    Source: the update of μ by the gain ratio is Nielsen's.
    """

    iterations: int
    damping: float = 1e-3

    def run(
        self,
        problem: LeastSquares,
        start: Float[Tensor, "starts unknowns"],
        watch: Callable[[int, Tensor, Tensor], Bool[Tensor, " starts"] | bool],
    ) -> tuple[Float[Tensor, "starts unknowns"], Float[Tensor, " starts"]]:
        """Minimizes from every start.

        Args:
            watch: called with the iteration, the values and the points; it returns which starts are done, or True to
                end the whole run.

        Returns:
            Last points and their values.
        """
        x = start.clone()
        local = problem.at(x)
        damping = self.damping * local.curvature
        growth = torch.full_like(damping, 2.0)
        value = local.value
        for iteration in range(self.iterations):
            done = watch(iteration, value, x)
            if done is True or (isinstance(done, Tensor) and bool(done.all())):
                break
            if iteration:
                local = problem.at(x)
            step = torch.nan_to_num(local.step(damping))
            new = problem.value(x + step)
            if self.damping == 0.0:
                x, value = x + step, new
                continue
            expected = 0.5 * (step * (damping[:, None] * step - local.slope)).sum(1)
            gain = (value - new) / expected.clamp_min(torch.finfo(x.dtype).tiny)
            better = (new < value) & (expected > 0)
            shrink = (1 - (2 * gain - 1) ** 3).clamp(1 / 3, 1.0)
            damping = torch.where(better, damping * shrink, damping * growth)
            growth = torch.where(better, torch.full_like(growth, 2.0), growth * 2).clamp_max(1e6)
            x = torch.where(better[:, None], x + step, x)
            value = torch.where(better, new, value)
        return x, value


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseLinearized:
    """With J as a matrix; solved by Cholesky."""

    residual: Float[Tensor, "starts entries"]
    jacobian: Float[Tensor, "starts entries unknowns"]
    normal: Float[Tensor, "starts unknowns unknowns"]

    @staticmethod
    def of(residual: Tensor, jacobian: Tensor) -> DenseLinearized:
        return DenseLinearized(residual=residual, jacobian=jacobian, normal=jacobian.mT @ jacobian)

    @property
    def value(self) -> Tensor:
        return 0.5 * self.residual.square().sum(1)

    @property
    def slope(self) -> Tensor:
        return (self.jacobian.mT @ self.residual[..., None])[..., 0]

    @property
    def curvature(self) -> Tensor:
        return self.normal.diagonal(dim1=1, dim2=2).amax(1)

    def step(self, damping: Tensor) -> Tensor:
        # A singular system gets the least damping that double precision can see.
        floor = 1e-15 * self.curvature
        shifted = self.normal + torch.diag_embed(
            torch.maximum(damping, floor)[:, None].expand(-1, self.normal.shape[1])
        )
        factor, failed = torch.linalg.cholesky_ex(shifted)
        step = torch.cholesky_solve(-self.slope[..., None], factor)[..., 0]
        return torch.where((failed == 0)[:, None], step, torch.zeros_like(step))


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    right: Float[Tensor, "starts unknowns"],
    *,
    iterations: int,
    tolerance: float,
) -> Float[Tensor, "starts unknowns"]:
    """A x = ``right`` for every start at once, A positive definite; a start stops when its residual is small enough."""
    x, residual = torch.zeros_like(right), right.clone()
    direction, square = residual.clone(), residual.square().sum(1)
    goal = tolerance**2 * square
    for _ in range(iterations):
        active = square > goal
        if not bool(active.any()):
            break
        image = product(direction)
        curvature = (direction * image).sum(1)
        # A direction without curvature is rounding: the start keeps what it has.
        active = active & (curvature > 0)
        length = torch.where(active, square / curvature.where(active, torch.ones_like(curvature)), 0.0)
        x = x + length[:, None] * direction
        residual = residual - length[:, None] * image
        new = residual.square().sum(1)
        ratio = torch.where(active, new / square.where(square > 0, torch.ones_like(square)), 0.0)
        direction = torch.where(active[:, None], residual + ratio[:, None] * direction, direction)
        square = torch.where(active, new, torch.zeros_like(new))
    return x
