"""A bounded norm is what gives noise its unit; by itself it only shortens the update. Must not add noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.stage import UpdateStage
from gradleak.core.update import Update
from gradleak.defenses._tensors import require, working_dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip(UpdateStage):
    """Scales the whole update down to a norm, and leaves a shorter one alone.

        released = u · min(1, C / ‖u‖),   ‖u‖ the Euclidean norm over all entries of all shared tensors

    Args:
        max_norm: C, positive.

    Raises:
        SpecError: if ``max_norm`` is not positive and finite.

    Guarantees:
        The released norm, summed in float64, is at most C for every input, rounding of half precision included.
        The direction is kept, so clipping alone hides nothing from an attack that compares directions.
        The surrogate is the same map for each restart, differentiable almost everywhere and finite at the zero update.
        An attacker who can simulate only some of the tensors does not know the norm of the rest; the surrogate then
        takes their part in the norm from the release, which is exact at the truth if nothing follows the clip.

    Source: Abadi et al., arXiv 1607.00133.
    Deviations: the norm is that of the batch's update, not of each example's.
    """

    summary: ClassVar[str] = "Scales the whole update down to a maximal Euclidean norm; keeps its direction."

    max_norm: float

    def __post_init__(self) -> None:
        require(
            math.isfinite(self.max_norm) and self.max_norm > 0, "clip", "max_norm", self.max_norm, "positive and finite"
        )

    def apply(self, update: Update, rng: torch.Generator) -> Update:
        factor, released = 1.0, update
        while (norm := released.norm()) > self.max_norm:
            # Rounding can leave the result an ulp too long; then the next factor is one ulp of slack smaller.
            slack = 1.0 if released is update else 1.0 - max(torch.finfo(t.dtype).eps for t in update.values())
            factor *= self.max_norm / norm * slack
            released = _scaled(update, factor)
        return released

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        per_tensor = [t.to(working_dtype(t)).square().flatten(1).sum(1) for t in simulated.values()]
        factor = self._factor(torch.stack(per_tensor).sum(0), _share_of_norm(simulated, observed))
        return {name: t * factor.to(t.dtype).view(-1, *[1] * (t.ndim - 1)) for name, t in simulated.items()}

    def rescale(self, norm: Float[Tensor, " restarts"], share: float) -> Float[Tensor, " restarts"]:
        return self._factor(norm.square(), share)

    def _factor(self, square: Float[Tensor, " restarts"], share: float) -> Float[Tensor, " restarts"]:
        # Clamping before the root keeps the derivative finite where the norm is zero.
        return (square / (self.max_norm * share) ** 2).clamp(min=1.0).rsqrt()

    def norm_bound(self) -> float | None:
        return self.max_norm

    def preserves_norm_bound(self) -> bool:
        return True


def _share_of_norm(simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> float:
    """The norm of those released tensors that are simulated, in units of the norm of all of them."""
    if simulated.keys() == observed.keys():
        return 1.0
    norms = {name: float(torch.linalg.vector_norm(t.to(working_dtype(t)))) for name, t in observed.items()}
    simulable = math.hypot(*(norms[name] for name in simulated))
    return simulable / math.hypot(*norms.values()) if simulable > 0 else 1.0


def _scaled(update: Update, factor: float) -> Update:
    return update.map(lambda _, tensor: (tensor.to(working_dtype(tensor)) * factor).to(tensor.dtype))
