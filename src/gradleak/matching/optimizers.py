"""Minimizing one function from many starts at once, with best-so-far, early stopping, a clock and a trace.

The function maps variables with a leading ``restarts`` axis to one value per restart, and restarts do not interact:
so one backward pass of the sum serves all, and Adam, being elementwise, keeps them apart. Must not know what is searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.attack import Clock, Status

Variables = dict[str, Tensor]
Function = Callable[[Mapping[str, Tensor]], Float[Tensor, " restarts"]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopping:
    """When a search ends before its iterations do.

    Attributes:
        target: stop when the best value is at most this.
        patience: stop when the best value has not fallen by 1 % in this many iterations.
    """

    target: float = 0.0
    patience: int = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The best point over all restarts, chosen by the function itself."""

    variables: Variables
    value: float
    status: Status
    trace: tuple[tuple[int, float], ...]
    iterations: int


class Optimizer(Protocol):
    """A way to minimize a function of variables with a leading ``restarts`` axis."""

    def minimize(self, function: Function, start: Variables, *, stopping: Stopping, clock: Clock) -> Found: ...


@dataclass(slots=True)
class Best:
    """Best value and point of every restart so far, and the trace of the overall best."""

    start: Variables
    values: Tensor
    points: Variables
    trace: list[tuple[int, float]] = field(default_factory=list)
    improved_at: int = 0
    level: float = math.inf

    @staticmethod
    def at(start: Variables) -> Best:
        restarts = next(iter(start.values())).shape[0]
        values = torch.full((restarts,), math.inf, device=next(iter(start.values())).device)
        return Best(start, values, {name: v.detach().clone() for name, v in start.items()})

    def note(self, iteration: int, values: Tensor, point: Mapping[str, Tensor]) -> None:
        values = values.detach()
        better = values < self.values
        self.values = torch.where(better, values, self.values)
        for name, variable in point.items():
            keep = better.view(-1, *[1] * (variable.ndim - 1))
            self.points[name] = torch.where(keep, variable.detach(), self.points[name])
        best = float(self.values.min())
        if best < 0.99 * self.level:
            self.level, self.improved_at = best, iteration
        self.trace.append((iteration, float(values.min()) if bool(torch.isfinite(values).any()) else math.inf))

    def result(self, status: Status, iterations: int) -> Found:
        winner = int(self.values.argmin())
        value = float(self.values[winner])
        if not math.isfinite(value):
            status = Status.DIVERGED
        trace = tuple((i, v) for i, v in self.trace if math.isfinite(v))
        return Found(
            variables={name: point[winner] for name, point in self.points.items()},
            value=value,
            status=status,
            trace=_thin(trace),
            iterations=iterations,
        )


def _thin(trace: tuple[tuple[int, float], ...], most: int = 200) -> tuple[tuple[int, float], ...]:
    """At most ``most`` points, the last one always among them: a trace is for looking at."""
    step = max(1, math.ceil(len(trace) / most))
    return trace[::step] if not trace or trace[::step][-1] == trace[-1] else (*trace[::step], trace[-1])


def stop_now(best: Best, iteration: int, stopping: Stopping, clock: Clock) -> Status | None:
    """Why the search ends here, or None if it goes on."""
    if float(best.values.min()) <= stopping.target or iteration - best.improved_at >= stopping.patience:
        return Status.CONVERGED
    return Status.BUDGET_SPENT if clock.spent() else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Adam:
    """Adam with an optional sign step and a linear decay of the learning rate to zero.

    Attributes:
        lr: learning rate in units of the variables' typical spread (the caller scales variables to about 1).
        signed: use the sign of the gradient (Geiping et al.).
        decay: let the learning rate fall linearly to ``lr · (1 − decay)``.
        box: keep the variable called ``inputs`` inside these bounds.
    """

    iterations: int
    lr: float
    signed: bool = False
    decay: float = 0.9
    box: tuple[float, float] | None = None

    def minimize(self, function: Function, start: Variables, *, stopping: Stopping, clock: Clock) -> Found:
        point = {name: v.detach().clone().requires_grad_() for name, v in start.items()}
        optimizer = torch.optim.Adam(list(point.values()), lr=self.lr)
        best = Best.at(start)
        status: Status | None = None
        done = 0
        for iteration in range(self.iterations):
            values = function(point)
            best.note(iteration, values, point)
            done = iteration + 1
            status = stop_now(best, iteration, stopping, clock)
            if status is not None:
                break
            slopes = torch.autograd.grad(values.sum(), list(point.values()))
            for variable, slope in zip(point.values(), slopes, strict=True):
                slope = torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
                variable.grad = slope.sign() if self.signed else slope
            for group in optimizer.param_groups:
                group["lr"] = self.lr * (1.0 - self.decay * iteration / self.iterations)
            optimizer.step()
            if self.box is not None:
                point["inputs"].data.clamp_(*self.box)
            clock.progress(done / self.iterations, f"objective {float(best.values.min()):.3g}")
        return best.result(status or Status.ITERATIONS_SPENT, done)


@dataclass(frozen=True, kw_only=True, slots=True)
class LBFGS:
    """Limited-memory BFGS on every restart at once, with backtracking until the Armijo condition holds.

    Each restart has its own history, direction and step; one evaluation serves all.

    Source: Nocedal & Wright, two-loop recursion (algorithm 7.4), written for a leading batch axis.
    """

    iterations: int
    memory: int = 20
    backtracks: int = 12

    def minimize(self, function: Function, start: Variables, *, stopping: Stopping, clock: Clock) -> Found:
        shapes = {name: v.shape for name, v in start.items()}
        x = flatten(start)

        def evaluate(flat: Tensor) -> tuple[Tensor, Tensor]:
            point = unflatten(flat.detach().requires_grad_(), shapes)
            leaves = {name: v.detach().requires_grad_() for name, v in point.items()}
            values = function(leaves)
            slopes = torch.autograd.grad(values.sum(), list(leaves.values()))
            slope = torch.cat([torch.nan_to_num(s).flatten(1) for s in slopes], 1)
            return values.detach().nan_to_num(nan=math.inf), slope

        best = Best.at(start)
        value, slope = evaluate(x)
        best.note(0, value, unflatten(x, shapes))
        history: list[tuple[Tensor, Tensor]] = []
        status: Status | None = None
        done = 0
        for iteration in range(1, self.iterations + 1):
            done = iteration
            direction = -_two_loop(slope, history)
            descent = (direction * slope).sum(1)
            uphill = descent >= 0
            direction = torch.where(uphill[:, None], -slope, direction)
            descent = torch.where(uphill, -slope.square().sum(1), descent)
            step = torch.ones_like(value) if history else 1.0 / slope.abs().sum(1).clamp_min(1e-30)
            step, moved = self._line_search(evaluate, x, value, direction, descent, step)
            new_x = x + step[:, None] * direction
            new_value, new_slope = moved
            s, y = new_x - x, new_slope - slope
            good = (s * y).sum(1) > 1e-12 * s.norm(dim=1) * y.norm(dim=1)
            history.append((s * good[:, None], y * good[:, None]))
            history = history[-self.memory :]
            stuck = bool((step == 0).all())
            x, value, slope = new_x, new_value, new_slope
            best.note(iteration, value, unflatten(x, shapes))
            status = Status.CONVERGED if stuck else stop_now(best, iteration, stopping, clock)
            clock.progress(iteration / self.iterations, f"objective {float(best.values.min()):.3g}")
            if status is not None:
                break
        return best.result(status or Status.ITERATIONS_SPENT, done)

    def _line_search(
        self,
        evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
        x: Tensor,
        value: Tensor,
        direction: Tensor,
        descent: Tensor,
        step: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Halves the step of each restart until it decreases enough; a restart that never does keeps step 0."""
        new_value, new_slope = evaluate(x + step[:, None] * direction)
        for _ in range(self.backtracks):
            short = ~(new_value <= value + 1e-4 * step * descent)
            if not bool(short.any()):
                return step, (new_value, new_slope)
            step = torch.where(short, step * 0.4, step)
            new_value, new_slope = evaluate(x + step[:, None] * direction)
        step = torch.where(new_value <= value, step, torch.zeros_like(step))
        return step, evaluate(x + step[:, None] * direction)


def _two_loop(slope: Tensor, history: list[tuple[Tensor, Tensor]]) -> Tensor:
    q = slope
    stack = []
    for s, y in reversed(history):
        curvature = (s * y).sum(1)
        rho = torch.where(curvature > 0, 1.0 / curvature.clamp_min(1e-38), torch.zeros_like(curvature))
        alpha = rho * (s * q).sum(1)
        q = q - alpha[:, None] * y
        stack.append((s, y, rho, alpha))
    if history:
        s, y = history[-1]
        square = y.square().sum(1)
        gamma = torch.where(square > 0, (s * y).sum(1) / square.clamp_min(1e-38), torch.ones_like(square))
        q = q * gamma[:, None]
    for s, y, rho, alpha in reversed(stack):
        beta = rho * (y * q).sum(1)
        q = q + (alpha - beta)[:, None] * s
    return q


def flatten(variables: Mapping[str, Tensor]) -> Float[Tensor, "restarts unknowns"]:
    """All variables of every restart as one vector."""
    return torch.cat([v.detach().flatten(1) for v in variables.values()], 1)


def unflatten(flat: Float[Tensor, "restarts unknowns"], shapes: Mapping[str, torch.Size]) -> Variables:
    """The inverse of ``flatten``."""
    pieces = flat.split([math.prod(shape[1:]) for shape in shapes.values()], dim=1)
    return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
