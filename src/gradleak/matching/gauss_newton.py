"""Matching by Levenberg–Marquardt on a real model, where the update's derivative is only needed in products
(``normal_product``). Must not know attacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.attack import Clock, Status
from gradleak.matching.optimizers import Best, Found, Function, Stopping, Variables, flatten, stop_now, unflatten
from gradleak.mechanics.client.outer_products import Simulated
from gradleak.mechanics.derivatives.least_squares import LevenbergMarquardt, conjugate_gradients
from gradleak.mechanics.derivatives.normal_product import NormalProduct


class SquaredMatching(Protocol):
    """A function of variables that is a squared distance between a simulated update and a fixed one, up to a factor."""

    def __call__(self, variables: Mapping[str, Tensor]) -> Float[Tensor, " restarts"]: ...

    def simulated(self, variables: Mapping[str, Tensor]) -> Simulated: ...

    def compare(self, simulated: Simulated) -> Float[Tensor, " restarts"]:
        """``weight`` times the squared distance."""
        ...

    def weight(self, simulated: Simulated) -> float: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussNewton:
    """Levenberg–Marquardt with matrix-free products: every step is solved by conjugate gradients.

    Attributes:
        iterations: linearizations; inner: most products with JᵀJ per step.
        tolerance: relative residual at which a step counts as solved.
        damping: the first μ in units of the curvature along the slope.
    """

    iterations: int
    inner: int = 40
    tolerance: float = 0.05
    damping: float = 1e-3

    def minimize(self, function: Function, start: Variables, *, stopping: Stopping, clock: Clock) -> Found:
        """As every optimizer of ``search``; ``function`` must be a ``SquaredMatching``."""
        problem = _Problem(
            function=cast(SquaredMatching, function),
            shapes={name: v.shape for name, v in start.items()},
            inner=self.inner,
            tolerance=self.tolerance,
        )
        run = _Run(best=Best.at(start), shapes=problem.shapes, stopping=stopping, clock=clock, total=self.iterations)
        solver = LevenbergMarquardt(iterations=self.iterations, damping=self.damping)
        x, value = solver.run(problem, flatten(start), run.watch)
        run.best.note(run.done, value, unflatten(x, problem.shapes))
        return run.best.result(run.status or Status.ITERATIONS_SPENT, run.done)


@dataclass(slots=True)
class _Run:
    """What one minimization keeps: the best so far, and why it ended."""

    best: Best
    shapes: Mapping[str, torch.Size]
    stopping: Stopping
    clock: Clock
    total: int
    status: Status | None = None
    done: int = 0

    def watch(self, iteration: int, value: Tensor, x: Tensor) -> bool:
        self.done = iteration
        self.best.note(iteration, value, unflatten(x, self.shapes))
        self.status = stop_now(self.best, iteration, self.stopping, self.clock)
        self.clock.progress(iteration / self.total, f"objective {float(self.best.values.min()):.3g}")
        return self.status is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Problem:
    function: SquaredMatching
    shapes: Mapping[str, torch.Size]
    inner: int
    tolerance: float

    def value(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.function(unflatten(x, self.shapes)).nan_to_num(nan=torch.inf)

    def at(self, x: Tensor) -> _Local:
        leaves = {name: v.detach().requires_grad_() for name, v in unflatten(x, self.shapes).items()}
        with torch.enable_grad():
            simulated = self.function.simulated(leaves)
            values = self.function.compare(simulated)
            slopes = torch.autograd.grad(
                values.sum(), list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return _Local.of(leaves, simulated, values, slopes, self)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Local:
    """Value, slope and products at one point. Values are Σ (g' − g)² · ``scale``, so JᵀJ counts 2 · ``scale``."""

    product: NormalProduct
    value: Tensor
    slope: Tensor
    scale: float
    problem: _Problem
    curvature: Tensor = field(default_factory=lambda: torch.empty(0))

    @staticmethod
    def of(
        leaves: Variables, simulated: Simulated, values: Tensor, slopes: tuple[Any, ...], problem: _Problem
    ) -> _Local:
        local = _Local(
            product=NormalProduct.of(list(leaves.values()), simulated),
            value=values.detach().nan_to_num(nan=torch.inf),
            slope=torch.cat([torch.nan_to_num(s).detach().flatten(1) for s in slopes], 1),
            scale=problem.function.weight(simulated),
            problem=problem,
        )
        square = local.slope.square().sum(1).clamp_min(torch.finfo(values.dtype).tiny)
        object.__setattr__(local, "curvature", (local.slope * local.normal(local.slope)).sum(1) / square)
        return local

    def normal(self, direction: Float[Tensor, "restarts unknowns"]) -> Float[Tensor, "restarts unknowns"]:
        """The Gauss–Newton part of the Hessian of the value."""
        back = self.product(list(unflatten(direction, self.problem.shapes).values()))
        return 2 * self.scale * torch.cat([torch.nan_to_num(b).flatten(1) for b in back], 1)

    def step(self, damping: Tensor) -> Tensor:
        return conjugate_gradients(
            lambda v: self.normal(v) + damping[:, None] * v,
            -self.slope,
            iterations=self.problem.inner,
            tolerance=self.problem.tolerance,
        )
