"""One bit per entry, as in signSGD, is often taken for a defense; it keeps the direction and the zero rows.
Must not add noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradleak.core.stage import UpdateStage
from gradleak.core.update import Update
from gradleak.defenses._tensors import smooth_sign

SHARPNESS = 0.1
"""τ: the smooth sign bends at τ·rms. For Gaussian entries it agrees with the true sign to a cosine of 0.984 (0.956 at
τ = 0.3, 0.995 at 0.03) and still has a slope where most entries are; the tests compute the number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sign(UpdateStage):
    """Shares only the sign of every entry; zero stays zero.

        released_i = sign(u_i) ∈ {-1, 0, 1}
        surrogate_i = u_i / √(u_i² + (τ·rms)²),   τ = 0.1, rms over the nonzero entries of the tensor, per restart

    The surrogate is the smooth sign of the rectified L1 norm: odd, increasing, unchanged when the update is scaled,
    zero where the update is zero.

    Guarantees:
        Deterministic. No differential privacy. The norm becomes the root of the number of nonzero entries, so an
        earlier norm bound is lost. Entries that were zero stay visible as zero.
    """

    summary: ClassVar[str] = "Shares only the sign of every entry; zero rows stay zero."

    def apply(self, update: Update, rng: torch.Generator) -> Update:
        return update.map(lambda _, tensor: tensor.sign())

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: smooth_sign(tensor, SHARPNESS) for name, tensor in simulated.items()}
