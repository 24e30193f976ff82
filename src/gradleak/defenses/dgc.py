"""Deep gradient compression sends only the largest entries, and later what it kept back: the residual delays
information, it does not remove it. The residual belongs to the client.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradleak.core.stage import Client, ClientStage, State
from gradleak.core.update import Update
from gradleak.defenses._tensors import keep_largest, kept_count, on_support, require, working_dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class DGC(ClientStage):
    """Sends the largest entries of an accumulated update, in each tensor, and keeps the rest for later rounds.

        g ← u · min(1, C/‖u‖)          if a clip is given
        m ← momentum · m + g           momentum correction
        r ← r + m                      residual accumulation
        released = r where |r| is among the ⌈(1 - p)·n⌉ largest of the tensor, else 0
        r, m ← 0 where released        momentum factor masking

    Args:
        fraction: p, the share of entries kept back, in [0, 1).
        momentum: in [0, 1); 0 turns the correction off.
        max_norm: C, the clip of the client's own update, positive; none if None.
        warmup: rounds in which p is at most 1 - 4^-(round + 1), so that it rises as 0.75, 0.9375, ...

    Raises:
        SpecError: if an argument is out of range.

    Guarantees:
        Deterministic. Whatever is kept back is released in a later round unless later updates cancel it: with momentum
        0 the sum of all releases and of the residual is the sum of all updates.
        The surrogate keeps the support that the release shows; in the first round it is exact. No differential privacy.

    Source: Lin et al., arXiv 1712.01887, by the notes.
    Deviations: the clip is given as a norm (published: scaled by the number of clients); tensors of one entry are
        compressed like all others.
    """

    summary: ClassVar[str] = "Sends the largest entries now and the rest in later rounds: momentum, residual, warm-up."

    fraction: float
    momentum: float = 0.9
    max_norm: float | None = None
    warmup: int = 0

    def __post_init__(self) -> None:
        require(0.0 <= self.fraction < 1.0, "dgc", "fraction", self.fraction, "in [0, 1)")
        require(0.0 <= self.momentum < 1.0, "dgc", "momentum", self.momentum, "in [0, 1)")
        bound = self.max_norm is None or (math.isfinite(self.max_norm) and self.max_norm > 0)
        require(bound, "dgc", "max_norm", self.max_norm, "positive and finite")
        require(self.warmup >= 0, "dgc", "warmup", self.warmup, "at least 0")

    def apply(self, update: Update, client: Client, rng: torch.Generator) -> tuple[Update, State]:
        fraction = self.fraction_in(client.round)
        scale = 1.0 if self.max_norm is None else min(1.0, self.max_norm / max(update.norm(), 1e-300))
        kept: dict[str, Tensor] = {}

        def send(name: str, tensor: Tensor) -> Tensor:
            u = tensor.to(working_dtype(tensor)) * scale
            m = self.momentum * client.state.get(f"momentum.{name}", torch.zeros_like(u)) + u
            r = client.state.get(f"residual.{name}", torch.zeros_like(u)) + m
            flat = r.abs().flatten()
            mask = keep_largest(flat, kept_count(flat.numel(), fraction)).view_as(r)
            kept[f"momentum.{name}"], kept[f"residual.{name}"] = m * ~mask, r * ~mask
            return (r * mask).to(tensor.dtype)

        return update.map(send), kept

    def fraction_in(self, round: int) -> float:
        """The share of entries that is kept back in a round."""
        return min(self.fraction, 1.0 - 4.0 ** -(round + 1)) if round < self.warmup else self.fraction

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return on_support(simulated, observed)
