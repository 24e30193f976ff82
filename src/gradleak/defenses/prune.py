"""Sharing only the largest entries saves traffic and is often taken for a defense. Must not keep a residual: the
stage is one release, and delayed entries are another release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gradleak.core.stage import UpdateStage
from gradleak.core.update import Update
from gradleak.defenses._tensors import require, working_dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Prune(UpdateStage):
    """Sets the smallest entries to zero and shares the rest unchanged.

        released_i = u_i if |u_i| is among the ⌈(1 - p)·n⌉ largest magnitudes, else 0

    over all n entries of the update (``scope="global"``) or of each tensor for itself (``scope="tensor"``). Of equal
    magnitudes the earlier position is kept.

    Args:
        fraction: p, the share of entries set to zero, in [0, 1). Read as the decimal that was written: 0.7 of 10
            entries is 7.
        scope: "global" or "tensor".

    Raises:
        SpecError: if an argument is out of range.

    Guarantees:
        Deterministic; the released norm is at most that of the input. No differential privacy.
        The surrogate keeps the support that the release shows. Where later noise hides the support, it keeps all.

    Source: Lin et al., arXiv 1712.01887, for sharing the largest entries.
    Deviations: no momentum correction, no residual, no warm-up.
    """

    summary: ClassVar[str] = "Shares only the entries of largest magnitude, over the whole update or in each tensor."

    fraction: float
    scope: Literal["global", "tensor"] = "global"

    def __post_init__(self) -> None:
        require(0.0 <= self.fraction < 1.0, "prune", "fraction", self.fraction, "in [0, 1)")
        require(self.scope in ("global", "tensor"), "prune", "scope", self.scope, "global or tensor")

    def apply(self, update: Update, rng: torch.Generator) -> Update:
        if self.scope == "tensor":
            return update.map(lambda _, tensor: tensor * self._largest(tensor.abs().flatten()).view(tensor.shape))
        home = next(iter(update.values())).device
        dtype = max((working_dtype(t) for t in update.values()), key=lambda kind: torch.finfo(kind).bits)
        kept = self._largest(torch.cat([t.abs().flatten().to(home, dtype) for t in update.values()]))
        masks = dict(zip(update, kept.split([t.numel() for t in update.values()]), strict=True))
        return update.map(lambda name, tensor: tensor * masks[name].view(tensor.shape).to(tensor.device))

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: tensor * (observed[name] != 0) for name, tensor in simulated.items()}

    def preserves_norm_bound(self) -> bool:
        return True

    def _largest(self, magnitudes: Tensor) -> Tensor:
        """Boolean mask of the entries to keep, ``[n]``."""
        n = magnitudes.numel()
        keep = n - int(Fraction(str(self.fraction)) * n)
        threshold = magnitudes.kthvalue(n - keep + 1).values
        mask = magnitudes > threshold
        if bool(threshold > 0):  # Kept and dropped zeros are the same zeros; listing them would cost memory.
            ties = (magnitudes == threshold).nonzero().flatten()
            mask[ties[: keep - int(mask.sum())]] = True
        return mask
