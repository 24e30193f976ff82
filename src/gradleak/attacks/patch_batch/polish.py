"""All records together on the gradient itself: what rounding did to the one-by-one search is taken away. Newton steps with a fixed
derivative, which is enough because the records are already close.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.attacks.patch_batch.one_record import jacobian
from gradleak.attacks.patch_batch.reading import BatchCase
from gradleak.core.attack import Clock
from gradleak.mechanics.patches.spaces import PatchSpaces, row_space

_EMPTY = 1e-5
"""Tensors smaller than this share of the largest are zero in exact arithmetic (biases of keys), and hold rounding alone."""

_STEPS = 6
_GAIN = 0.5
"""A step that takes away less than this share calls for a new derivative, or the end."""

_STUCK = 0.9
"""A derivative that took away less than a tenth is the last one."""

_DAMPINGS = (1e-10, 1e-6, 1e-3)
"""Relative to the curvature; the first that lets the residual fall is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JointMatch:
    """The gradient's tensors that tell most for their cost: patch map, table and vectors.

    Attributes:
        names: of those tensors; sizes: their norms.
        basis: of the row space of dL/dW, in which that tensor is compared.
    """

    case: BatchCase
    spaces: PatchSpaces
    names: tuple[str, ...]
    sizes: dict[str, float]
    basis: Float[Tensor, "features rank"]
    labels: tuple[int, ...]

    @staticmethod
    def of(case: BatchCase, spaces: PatchSpaces, labels: tuple[int, ...]) -> JointMatch:
        norms = {name: float(tensor.norm()) for name, tensor in case.shared.items()}
        entrance = {case.entrance.weight, case.entrance.table}
        names = tuple(
            name
            for name, tensor in case.shared.items()
            if (tensor.ndim == 1 or name in entrance) and norms[name] > _EMPTY * max(norms.values())
        )
        return JointMatch(
            case=case,
            spaces=spaces,
            names=names,
            sizes={name: norms[name] for name in names},
            basis=row_space(case.gradient(), case.records * case.entrance.count)[2],
            labels=labels,
        )

    def flat(self, tensors: dict[str, Tensor]) -> Float[Tensor, " entries"]:
        """The compared tensors in units of their norms."""
        parts = []
        for name in self.names:
            tensor = tensors[name]
            if name == self.case.entrance.weight:
                tensor = tensor.flatten(1) @ self.basis
            parts.append(tensor.flatten() / self.sizes[name])
        return torch.cat(parts)

    def own(self, record: int, c: Float[Tensor, " unknowns"]) -> Float[Tensor, " entries"]:
        """The part of one record with these coordinates."""
        picture = self.case.entrance.to_pixels(self.patches(c))
        slopes = self.case.passes.slopes_in(self.names, picture, self.labels[record])
        return self.flat(slopes) / self.case.of

    def patches(self, c: Float[Tensor, " unknowns"]) -> Float[Tensor, "1 patches features"]:
        shape = (self.spaces.offsets.shape[0], self.spaces.directions.shape[1])
        return (self.spaces.offsets + c.reshape(shape) @ self.spaces.directions.T).unsqueeze(0)

    def coordinates(self, patches: Float[Tensor, "1 patches features"]) -> Float[Tensor, " unknowns"]:
        return ((patches[0] - self.spaces.offsets) @ self.spaces.directions).flatten()

    def residual(self, points: Float[Tensor, "records unknowns"]) -> Float[Tensor, " entries"]:
        total = sum((self.own(record, c) for record, c in enumerate(points)), torch.zeros((), dtype=torch.float64))
        return total - self.flat(dict(self.case.shared))

    def derivative(self, points: Float[Tensor, "records unknowns"]) -> Float[Tensor, "entries all_unknowns"]:
        parts = [jacobian(lambda c, record=record: self.own(record, c), point) for record, point in enumerate(points)]
        return torch.cat(parts, dim=1)


def polish(
    case: BatchCase, patches: tuple[Tensor, ...], labels: tuple[int, ...], clock: Clock, *, iterations: int
) -> tuple[Tensor, ...]:
    """The same records, closer to the gradient; as they were if no step lets the residual fall.

    Args:
        iterations: derivatives at most.
    """
    spaces = case.spaces()
    match = JointMatch.of(case, spaces, labels)
    with torch.no_grad():
        points = torch.stack([match.coordinates(each) for each in patches])
        value = match.residual(points)
        for number in range(iterations):
            if clock.spent():
                break
            clock.progress(1.0 - 0.5 ** (number + 3), f"all records together, residual {float(value.norm()):.1e}")
            moved, after = _chord(match, points, value, clock)
            stuck = float(after.norm()) > _STUCK * float(value.norm())
            points, value = moved, after
            if stuck:
                break
    return tuple(match.patches(point) for point in points)


def _chord(match: JointMatch, points: Tensor, value: Tensor, clock: Clock) -> tuple[Tensor, Tensor]:
    """Steps with one derivative for as long as each takes away half of the residual."""
    slope = match.derivative(points)
    normal = slope.T @ slope
    factors = [torch.linalg.cholesky_ex(normal + d * torch.diag(normal.diagonal())).L for d in _DAMPINGS]
    for _ in range(_STEPS):
        moved, after = _first_fall(match, points, value, slope, factors)
        gained = float(after.norm()) < _GAIN * float(value.norm())
        points, value = moved, after
        if not gained or clock.spent():
            break
    return points, value


def _first_fall(
    match: JointMatch, points: Tensor, value: Tensor, slope: Tensor, factors: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """The step of the first damping that lets the residual fall; no step if none does."""
    pull = (slope.T @ value).unsqueeze(1)
    for factor in factors:
        moved = points - torch.cholesky_solve(pull, factor)[:, 0].reshape(points.shape)
        after = match.residual(moved)
        if bool(after.norm() < value.norm()):
            return moved, after
    return points, value
