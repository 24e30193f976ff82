"""Pruning at random hides which entries were large; what is left is still exact. Must not look at magnitudes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradleak.core.stage import UpdateStage
from gradleak.core.update import Update
from gradleak.defenses._tensors import kept_count, on_support, require


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomMask(UpdateStage):
    """Shares a random subset of every tensor's entries and sets the rest to zero.

        released_i = u_i for ⌈(1 - p)·n⌉ of the n entries, all subsets equally likely; else 0

    Args:
        fraction: p, the share of entries set to zero, in [0, 1).

    Raises:
        SpecError: if ``fraction`` is out of range.

    Guarantees:
        Fresh draws at each call, from ``rng`` alone. The released norm is at most that of the input.
        The surrogate keeps the support that the release shows. No differential privacy.

    Source: pruning with random selection of arXiv 2305.06473, by the notes.
    """

    summary: ClassVar[str] = "Shares a random subset of the entries of every tensor; the rest is zero."

    fraction: float

    def __post_init__(self) -> None:
        require(0.0 <= self.fraction < 1.0, "random_mask", "fraction", self.fraction, "in [0, 1)")

    def apply(self, update: Update, rng: torch.Generator) -> Update:
        def keep(_: str, tensor: Tensor) -> Tensor:
            order = torch.randperm(tensor.numel(), generator=rng, device=rng.device)
            mask = torch.zeros(tensor.numel(), dtype=torch.bool, device=tensor.device)
            mask[order[: kept_count(tensor.numel(), self.fraction)].to(tensor.device)] = True
            return tensor * mask.view(tensor.shape)

        return update.map(keep)

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return on_support(simulated, observed)

    def preserves_norm_bound(self) -> bool:
        return True
