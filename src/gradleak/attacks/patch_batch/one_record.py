"""One record of a batch: a point of the affine spaces at which the equations vanish, by Levenberg–Marquardt from samples of a prior."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.attacks.patch_batch.equations import ReadEquations
from gradleak.attacks.patch_batch.reading import BatchCase
from gradleak.core.attack import Clock
from gradleak.mechanics.patches.prior import PicturePrior
from gradleak.mechanics.patches.spaces import PatchSpaces

_CHUNK = 64
"""Directions that are differentiated at once."""

_FALL = 0.02
"""A search that fell to this share of its start and then stands has arrived at the noise of the equations."""

_STANDS = 0.9
_HOPELESS, _LOOK_BACK, _LATE = 0.8, 6, 12
"""Given up if the last six of at least twelve iterations took away less than a fifth."""

_REJECTIONS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Affine:
    """Patches as coordinates: offsets_p + directions · c_p, with a Gaussian start.

    Attributes:
        center: the most likely coordinates under the prior; root: a root of their covariance.
    """

    case: BatchCase
    spaces: PatchSpaces
    center: Float[Tensor, "patches free"]
    root: Float[Tensor, "free free"]

    @staticmethod
    def of(case: BatchCase, spaces: PatchSpaces) -> Affine:
        prior = PicturePrior.for_shape(case.entrance.shape)
        std, mean = case.by_entry(case.subject.pixel_std, 1.0), case.by_entry(case.subject.pixel_mean, 0.0)
        precision = torch.linalg.inv(prior.patch_covariance(case.entrance.patch)) * torch.outer(std, std)
        expected = (prior.mean - mean) / std
        moved = spaces.directions.T @ precision
        inner = moved @ spaces.directions
        center = torch.linalg.solve(inner, moved @ (expected - spaces.offsets).T).T
        return Affine(case=case, spaces=spaces, center=center, root=torch.linalg.cholesky(torch.linalg.inv(inner)))

    def sample(self, rng: torch.Generator) -> Float[Tensor, " unknowns"]:
        white = torch.randn(self.center.shape, generator=rng, dtype=torch.float64)
        return (self.center + white @ self.root.T).flatten()

    def patches(self, c: Float[Tensor, " unknowns"]) -> Float[Tensor, "1 patches features"]:
        return (self.spaces.offsets + c.reshape(self.center.shape) @ self.spaces.directions.T).unsqueeze(0)

    def read(self, c: Float[Tensor, " unknowns"]) -> Float[Tensor, "1 channels height width"]:
        """The picture as the model reads it."""
        return self.case.entrance.to_pixels(self.patches(c))


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """Where one search ended: coordinates, residual, and its share of the first one."""

    point: Float[Tensor, " unknowns"]
    residual: float
    share: float

    @property
    def arrived(self) -> bool:
        return self.share < _FALL


def search_record(
    affine: Affine, equations: ReadEquations, *, iterations: int, rng: torch.Generator, clock: Clock
) -> Candidate:
    """One search from one sample."""

    def residual(c: Tensor) -> Tensor:
        return equations(affine.read(c))[0]

    c = affine.sample(rng)
    with torch.no_grad():
        value, damping = residual(c), 1e-2
        norms = [float(value.norm())]
        for _ in range(iterations):
            if clock.spent():
                break
            slope = jacobian(residual, c)
            step = _damped_step(residual, c, value, slope, damping)
            if step is None:
                break
            c, value, damping = step
            norms.append(float(value.norm()))
            if _ended(norms):
                break
    return Candidate(point=c, residual=norms[-1], share=norms[-1] / max(norms[0], torch.finfo(torch.float64).tiny))


def jacobian(function: Callable[[Tensor], Tensor], c: Float[Tensor, " unknowns"]) -> Float[Tensor, "entries unknowns"]:
    """By forward differentiation, some directions at a time."""

    def along(direction: Tensor) -> Tensor:
        return torch.func.jvp(function, (c,), (direction,))[1]

    with warnings.catch_warnings():
        # torch loads its rules for forward mode through a part of itself that it has deprecated.
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.func.vmap(along, chunk_size=_CHUNK)(torch.eye(len(c), dtype=c.dtype)).T


def _damped_step(
    residual: Callable[[Tensor], Tensor], c: Tensor, value: Tensor, slope: Tensor, damping: float
) -> tuple[Tensor, Tensor, float] | None:
    """The next point, its residual and the next damping; None if no damping lets the residual fall."""
    normal, pull = slope.T @ slope, slope.T @ value
    diagonal = torch.diag(normal.diagonal().clamp_min(torch.finfo(normal.dtype).tiny))
    for _ in range(_REJECTIONS):
        moved = c - torch.linalg.solve(normal + damping * diagonal, pull)
        after = residual(moved)
        if bool(after.norm() < value.norm()):
            return moved, after, max(damping / 6, 1e-12)
        damping *= 4
    return None


def _ended(norms: list[float]) -> bool:
    low = norms[-1] < _FALL * norms[0]
    if low and norms[-1] > _STANDS * norms[-2]:
        return True
    return len(norms) > _LATE and norms[-1] > _HOPELESS * norms[-_LOOK_BACK]
