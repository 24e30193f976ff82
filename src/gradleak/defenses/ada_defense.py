"""AdaDefense uploads what Adam would have done with the gradient in the place of the gradient. Its memory belongs
to the client: public code shares one memory among all of them, and so mixes what they hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gradleak.core.stage import Client, ClientStage, State
from gradleak.core.update import Update
from gradleak.defenses._tensors import require, smooth_sign, working_dtype

_WIDTH = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaDefense(ClientStage):
    """Uploads an adaptive-moment stand-in of the update.

        m ← β₁ m + (1 - β₁) u        v ← β₂ v + (1 - β₂) u²         (adam)
                                     v ← v + u²                     (adagrad)
                                     v ← v - (1 - β₂) u² sign(v - u²)  (yogi)
        released = scale · √(1 - β₂^(t+1)) / (1 - β₁^(t+1)) · m / (√v + ε),   t the client's round, m = v = 0 before

    In the first round adam's stand-in is scale · u / (|u| + ε/√(1 - β₂)): the sign of every entry.

    Args:
        variant: "adam", "adagrad" or "yogi".
        scale: size of the released entries, positive.
        beta1, beta2: decay of the moments, in [0, 1).
        epsilon: ε, positive.

    Raises:
        SpecError: if an argument is out of range.

    Guarantees:
        Deterministic. A zero entry that was never anything else stays exactly zero. No differential privacy.
        m and v are the client's own, passed in and out.
        The surrogate gives every released entry the smooth sign of the candidate's: exact signs in the first round, an
        estimate later, when the release also depends on earlier rounds.

    Source: arXiv 2410.08734; update rules and defaults as the public code has them, by the notes.
    Deviations: t is the client's own round, starting at 0; the public code gives rounds 0 and 1 the same t.
    """

    summary: ClassVar[str] = "Uploads Adam's step (or Adagrad's, Yogi's) with the update instead of the update."

    variant: Literal["adam", "adagrad", "yogi"] = "adam"
    scale: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        known = self.variant in ("adam", "adagrad", "yogi")
        require(known, "ada_defense", "variant", self.variant, "adam, adagrad or yogi")
        for key, value in (("scale", self.scale), ("epsilon", self.epsilon)):
            require(math.isfinite(value) and value > 0, "ada_defense", key, value, "positive and finite")
        for key, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            require(0.0 <= value < 1.0, "ada_defense", key, value, "in [0, 1)")

    def apply(self, update: Update, client: Client, rng: torch.Generator) -> tuple[Update, State]:
        kept: dict[str, Tensor] = {}
        t = client.round + 1
        factor = self.scale * math.sqrt(1.0 - self.beta2**t) / (1.0 - self.beta1**t)

        def stand_in(name: str, tensor: Tensor) -> Tensor:
            u = tensor.to(working_dtype(tensor))
            first = client.state.get(f"m.{name}", torch.zeros_like(u))
            m = self.beta1 * first + (1.0 - self.beta1) * u
            v = self._second(client.state.get(f"v.{name}", torch.zeros_like(u)), u.square())
            kept[f"m.{name}"], kept[f"v.{name}"] = m, v
            return (factor * m / (v.sqrt() + self.epsilon)).to(tensor.dtype)

        return update.map(stand_in), kept

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: smooth_sign(tensor, _WIDTH) * observed[name].abs() for name, tensor in simulated.items()}

    def _second(self, v: Tensor, square: Tensor) -> Tensor:
        if self.variant == "adam":
            return self.beta2 * v + (1.0 - self.beta2) * square
        if self.variant == "adagrad":
            return v + square
        return v - (1.0 - self.beta2) * square * (v - square).sign()
