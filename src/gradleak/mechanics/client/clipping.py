"""A mechanism that runs and a mechanism that is accounted for must be one object. A clip here carries its own certificate: what
it does to gradients and what one example can then change are two methods of the same class, and ``NoisySum`` is made of them.

Must not know stages, accountants or models. ``describe`` speaks the words of a training plan; it computes no ε.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Rows = Mapping[str, Float[Tensor, "batch ..."]]
"""Per-example gradients: row i of every tensor belongs to example i."""


class Clipping(ABC):
    """Bounds what one example contributes."""

    @abstractmethod
    def __call__(self, rows: Rows) -> dict[str, Tensor]:
        """The clipped rows; differentiable."""

    def factors(self, square_norms: Float[Tensor, " batch"]) -> Float[Tensor, " batch"] | None:
        """What each example's whole gradient is multiplied by, where that follows from its norm alone; else None."""
        return None

    @abstractmethod
    def unit(self, rows: Rows) -> float:
        """C: what a noise multiplier is in units of."""

    @abstractmethod
    def describe(self, tensors: int) -> dict[str, Any]:
        """The clip in the words of a plan, for rows of so many tensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipExample(Clipping):
    """Each example's gradient, over all tensors, scaled down to norm C.

    Guarantees:
        One example changes the sum of rows by at most C, rounding included.
    """

    max_norm: float

    def __call__(self, rows: Rows) -> dict[str, Tensor]:
        return _scaled(rows, _factor(square_norms(rows), self.max_norm))

    def factors(self, square_norms: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return _shortened(_factor(square_norms, self.max_norm), torch.float32)

    def unit(self, rows: Rows) -> float:
        return self.max_norm

    def describe(self, tensors: int) -> dict[str, Any]:
        return {"clip": "example"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTensor(Clipping):
    """Each tensor of each example's gradient scaled down to norm C by itself, as the public code of Fed-CDP does.

    Guarantees:
        One example changes the sum of rows by at most √M·C, M the number of tensors.
    """

    max_norm: float

    def __call__(self, rows: Rows) -> dict[str, Tensor]:
        return {
            name: _scaled({name: rows[name]}, _factor(square_norms({name: rows[name]}), self.max_norm))[name]
            for name in rows
        }

    def unit(self, rows: Rows) -> float:
        return self.max_norm

    def describe(self, tensors: int) -> dict[str, Any]:
        return {"clip": "tensor", "tensors": tensors}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipLargest(Clipping):
    """Nothing longer than the batch's own longest gradient, limited to [low, high]; the noise unit follows the data.

    Guarantees:
        None. The unit is computed from the private batch, so the size of the noise tells about it.
    """

    low: float
    high: float

    def __call__(self, rows: Rows) -> dict[str, Tensor]:
        return _scaled(rows, _factor(square_norms(rows), self.unit(rows)))

    def unit(self, rows: Rows) -> float:
        longest = float(square_norms(rows).detach().max().sqrt())
        return min(self.high, max(self.low, longest))

    def describe(self, tensors: int) -> dict[str, Any]:
        return {"clip": "data"}


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisySum:
    """(Σ clipped rows + z·C·N(0, I)) / n: the Gaussian mechanism on a batch, in one place for running and for describing it.

    Attributes:
        clipping: with C as its unit. noise_multiplier: z, at least 0.
    """

    clipping: Clipping
    noise_multiplier: float

    def __call__(self, rows: Rows, divisor: float, rng: torch.Generator) -> dict[str, Tensor]:
        """With fresh noise on every entry of every tensor.

        Args:
            rows: of the examples that take part; possibly none.
            divisor: n, a number that is public.
        """
        total = {name: tensor.sum(0) for name, tensor in self.clipping(rows).items()}
        return self.finish(total, self.clipping.unit(rows), divisor, rng)

    def finish(
        self, total: Mapping[str, Tensor], unit: float, divisor: float, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Noise and divisor for a sum that is clipped already, in units of ``unit``."""
        std = self.noise_multiplier * unit
        # Drawn on the generator's device, in the sum's precision.
        return {name: (tensor + std * _noise(tensor, rng)) / divisor for name, tensor in total.items()}

    def without_noise(self, rows: Rows, divisor: float) -> dict[str, Tensor]:
        """The same in expectation, differentiable: what an attacker who knows the mechanism simulates."""
        return {name: tensor.sum(0) / divisor for name, tensor in self.clipping(rows).items()}

    def describe(self, tensors: int) -> dict[str, Any]:
        """Clip and noise in the words of a plan."""
        return {"noise_multiplier": self.noise_multiplier, **self.clipping.describe(tensors)}


def square_norms(rows: Rows) -> Float[Tensor, " batch"]:
    """Squared Euclidean norm of every example's gradient over all its tensors, accumulated in float64."""
    return torch.stack([tensor.flatten(1).double().square().sum(1) for tensor in rows.values()]).sum(0)


def _factor(square: Float[Tensor, " batch"], max_norm: float) -> Float[Tensor, " batch"]:
    # Clamping before the root keeps the derivative finite at the zero gradient.
    return (square / max_norm**2).clamp(min=1.0).rsqrt()


def _scaled(rows: Rows, factor: Float[Tensor, " batch"]) -> dict[str, Tensor]:
    """Rows times their factor; a row that was shortened loses two more units of rounding, so that it is never too long."""
    scaled: dict[str, Tensor] = {}
    for name, tensor in rows.items():
        by = _shortened(factor, tensor.dtype).to(tensor.dtype)
        scaled[name] = tensor * by.view(-1, *[1] * (tensor.ndim - 1))
    return scaled


def _shortened(factor: Float[Tensor, " batch"], dtype: torch.dtype) -> Float[Tensor, " batch"]:
    return factor * torch.where(factor < 1.0, 1.0 - 2.0 * torch.finfo(dtype).eps, 1.0)


def _noise(like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=rng, device=rng.device, dtype=like.dtype).to(like.device)
