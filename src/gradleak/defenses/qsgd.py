"""Stochastic quantization saves traffic and is sometimes taken for a defense; it is noise of a known, small size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gradleak.core.stage import UpdateStage
from gradleak.core.update import Update
from gradleak.defenses._tensors import require, working_dtype

_QUANTILES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class QSGD(UpdateStage):
    """Rounds every entry at random to one of two neighboring levels, so that its mean is the entry.

        released_i = Δ·sign(u_i)·(⌊|u_i|/Δ⌋ + Bernoulli(|u_i|/Δ - ⌊|u_i|/Δ⌋)),   Δ = N(u_t)/levels for each tensor u_t

    Args:
        levels: intervals between 0 and N, at least 1.
        norm: N, the Euclidean norm ("l2", as published) or the largest magnitude ("max", as most code has it) of the tensor.

    Raises:
        SpecError: if an argument is out of range.

    Guarantees:
        Unbiased, so the best simulation of this stage is to do nothing. Fresh draws at each call, from ``rng`` alone.
        Zero stays zero, so the rows of absent tokens stay visible. No differential privacy.
        ``noise_std`` is that of Gaussian entries of the release's mean magnitude, an estimate for other shapes.

    Source: Alistarh et al., arXiv 1610.02132, by the notes; "max" is the form that the notes found in attack code.
    """

    summary: ClassVar[str] = "Rounds every entry at random to one of a few levels, without bias."

    levels: int = 16
    norm: Literal["l2", "max"] = "max"

    def __post_init__(self) -> None:
        require(self.levels >= 1, "qsgd", "levels", self.levels, "at least 1")
        require(self.norm in ("l2", "max"), "qsgd", "norm", self.norm, "l2 or max")

    def apply(self, update: Update, rng: torch.Generator) -> Update:
        return update.map(lambda _, tensor: self._round(tensor, rng))

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return simulated

    def surrogate_is_identity(self) -> bool:
        return True

    def noise_std(self, observed: Tensor, weight: Tensor | None = None) -> float:
        wide = observed.double()
        mean = float(wide.abs().mean())
        # Rounding lengthens a tensor, so its norm is read from the spread that its mean magnitude implies.
        spread = math.sqrt(math.pi / 2.0) * mean
        size = float(wide.abs().max()) if self.norm == "max" else spread * math.sqrt(wide.numel())
        if size == 0.0:
            return 0.0
        step = size / self.levels
        places = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
        part = (spread * torch.special.ndtri(places)).abs() / step
        part = part - part.floor()
        return step * math.sqrt(float((part * (1.0 - part)).mean()))

    def _round(self, tensor: Tensor, rng: torch.Generator) -> Tensor:
        wide = tensor.to(working_dtype(tensor))
        size = wide.abs().max() if self.norm == "max" else torch.linalg.vector_norm(wide)
        step = size / self.levels
        draw = torch.rand(tensor.shape, generator=rng, device=rng.device, dtype=wide.dtype).to(tensor.device)
        if not bool(step > 0):
            return tensor.clone()
        steps = wide.abs() / step
        level = steps.floor()
        level = level + (draw < steps - level)
        return (wide.sign() * level * step).clamp(-size, size).to(tensor.dtype)
