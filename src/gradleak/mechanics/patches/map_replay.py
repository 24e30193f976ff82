"""Where two tensors are too noisy, all tensors together are not: the most likely picture given the whole update, by Gauss–Newton on
the simulated gradient with a Gaussian prior. Must not know attacks.

    min_z  ½ Σ_t ‖c g_t(x(z)) − u_t‖² / σ_t² + ½ ‖z‖²,    x(z) = mean + prior^½ z,    c the best scale at every step
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.mechanics.client.factored import simulate_gradients
from gradleak.mechanics.client.outer_products import FactoredMatrix, Simulated
from gradleak.mechanics.derivatives.least_squares import LevenbergMarquardt, conjugate_gradients
from gradleak.mechanics.derivatives.normal_product import NormalProduct
from gradleak.mechanics.patches.prior import PicturePrior
from gradleak.models import Subject

_INNER = 30
"""Products with JᵀJ for one step."""

_TOLERANCE = 0.05

_STALL = 8
"""Iterations without a change of 1e-4 after which the search ends; a few in a row may be rejected while the damping grows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WholeUpdate:
    """The problem of one record.

    Attributes:
        observed: released tensors, float32; weights: 1/σ_t.
        label: class of the record, one-hot ``[1 classes]``.
        prior: of pixels in [0, 1].
    """

    subject: Subject
    observed: Mapping[str, Tensor]
    weights: Mapping[str, float]
    label: Float[Tensor, "1 classes"]
    prior: PicturePrior

    def pixels(self, z: Float[Tensor, "1 unknowns"]) -> Float[Tensor, "1 channels height width"]:
        return self.prior.mean + self.prior.colored(z.reshape(1, *self.prior.shape))

    def whitened(self, pixels: Float[Tensor, "1 channels height width"]) -> Float[Tensor, "1 unknowns"]:
        """z of a picture."""
        channels, rows, columns = (torch.linalg.cholesky(covariance) for covariance in self.prior.factors())
        off = (pixels.double() - self.prior.mean) / self.prior.std
        for axis, factor in ((1, channels), (2, rows), (3, columns)):
            moved = off.movedim(axis, 0)
            solved = torch.linalg.solve_triangular(factor, moved.flatten(1), upper=False)
            off = solved.reshape(moved.shape).movedim(0, axis)
        return off.reshape(1, -1).float()

    def simulate(self, z: Float[Tensor, "1 unknowns"]) -> Simulated | None:
        """The gradient in units of the noise."""
        mask = torch.ones(1, dtype=torch.bool)
        names = tuple(self.observed)
        gradients = simulate_gradients(self.subject, names, self.pixels(z), self.label, mask, restarts=1)
        if gradients is None:
            return None
        return {
            name: part.scaled(self.weights[name]) if isinstance(part, FactoredMatrix) else part * self.weights[name]
            for name, part in gradients.items()
        }

    def scale(self, simulated: Simulated) -> float:
        """The factor that brings the simulated gradient closest to what was released (a learning rate, a clip)."""
        with torch.no_grad():
            inner = sum(float(_inner(part, self.target(name))) for name, part in simulated.items())
            square = sum(float(_square(part)) for part in simulated.values())
        return inner / max(square, torch.finfo(torch.float32).tiny)

    def target(self, name: str) -> Tensor:
        return self.observed[name] * self.weights[name]

    def value(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            simulated = self.simulate(x)
            assert simulated is not None
        with torch.no_grad():
            return self.distance(simulated, x, self.scale(simulated)).nan_to_num(nan=torch.inf)

    def distance(self, simulated: Simulated, z: Tensor, scale: float) -> Float[Tensor, " one"]:
        total = 0.5 * z.square().sum(1)
        for name, part in simulated.items():
            total = total + 0.5 * _distance(part, self.target(name), scale)
        return total

    def at(self, x: Tensor) -> _Local:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            simulated = self.simulate(leaf)
            assert simulated is not None
            scale = self.scale(simulated)
            value = self.distance(simulated, leaf, scale)
            (slope,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)
        scaled = {n: p.scaled(scale) if isinstance(p, FactoredMatrix) else p * scale for n, p in simulated.items()}
        return _Local(product=NormalProduct.of([leaf], scaled), value=value.detach(), slope=slope)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Local:
    product: NormalProduct
    value: Tensor
    slope: Tensor

    @property
    def curvature(self) -> Tensor:
        return torch.ones_like(self.value)

    def step(self, damping: Tensor) -> Tensor:
        # The prior is the identity in whitened pixels, so damping below one changes little.
        return conjugate_gradients(
            lambda v: self.product([v])[0] + (1.0 + damping[:, None]) * v,
            -self.slope,
            iterations=_INNER,
            tolerance=_TOLERANCE,
        )


def most_likely(
    problem: WholeUpdate,
    start: Float[Tensor, "1 channels height width"],
    *,
    iterations: int,
    watch: Callable[[int, float], bool],
) -> tuple[Float[Tensor, "1 channels height width"], float]:
    """Gauss–Newton from ``start``.

    Args:
        watch: called with the iteration and the value; True ends the search.

    Returns:
        The picture and the value there.
    """
    values: list[float] = []

    def stop(iteration: int, value: Tensor, _: Tensor) -> bool:
        values.append(float(value[0]))
        stalled = len(values) > _STALL and values[-1 - _STALL] - values[-1] < 1e-4 * abs(values[-1])
        return watch(iteration, values[-1]) or stalled

    z, value = LevenbergMarquardt(iterations=iterations, damping=1.0).run(problem, problem.whitened(start), stop)
    return problem.pixels(z).detach(), float(value[0])


def _inner(part: Tensor | FactoredMatrix, target: Tensor) -> Tensor:
    return part.inner(target).sum() if isinstance(part, FactoredMatrix) else (part.flatten() * target.flatten()).sum()


def _square(part: Tensor | FactoredMatrix) -> Tensor:
    return part.square().sum()


def _distance(part: Tensor | FactoredMatrix, target: Tensor, scale: float) -> Tensor:
    if isinstance(part, FactoredMatrix):
        return part.scaled(scale).distance(target, 0.0)
    return (scale * part - target.reshape(part.shape)).square().flatten(1).sum(1)
