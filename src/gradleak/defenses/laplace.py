"""Additive Laplace noise of a plain scale, as many code bases ship it. Must not be called private: without an
L1 sensitivity the scale is no epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradleak.core.stage import UpdateStage
from gradleak.core.update import Update
from gradleak.defenses._tensors import add_noise, finite_and_not_negative, require


@dataclass(frozen=True, kw_only=True, slots=True)
class Laplace(UpdateStage):
    """Adds independent Laplace noise to every entry of every shared tensor, zero rows included.

        released = u + L,   density of an entry of L: exp(-|x|/b) / 2b,   b = scale,   standard deviation √2·b

    Args:
        scale: b, in units of the update, at least 0.

    Raises:
        SpecError: if ``scale`` is negative or not finite.

    Guarantees:
        Zero mean, so the best simulation of this stage is to do nothing. Fresh noise at each call, from ``rng`` alone.
        No differential privacy: the L1 norm of an update is not bounded here.
    """

    summary: ClassVar[str] = "Adds Laplace noise of an absolute scale to every entry; no guarantee."

    scale: float

    def __post_init__(self) -> None:
        require(finite_and_not_negative(self.scale), "laplace", "scale", self.scale, "a finite number of at least 0")

    def apply(self, update: Update, rng: torch.Generator) -> Update:
        def draw(shape: torch.Size, dtype: torch.dtype) -> Tensor:
            # The difference of two exponentials is Laplace; unlike the inverse of the distribution function it never
            # takes the logarithm of zero.
            first, second = (
                torch.empty(shape, dtype=dtype, device=rng.device).exponential_(generator=rng) for _ in "ab"
            )
            return self.scale * (first - second)

        return update.map(lambda _, tensor: add_noise(tensor, draw))

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return simulated

    def surrogate_is_identity(self) -> bool:
        return True

    def noise_std(self, observed: Tensor, weight: Tensor | None = None) -> float:
        return math.sqrt(2.0) * self.scale
