"""Inverting Gradients: match the gradient's direction, with total variation on images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradleak.core.batch import Modality
from gradleak.core.specs import require_ranges
from gradleak.matching.attack import MatchingAttack
from gradleak.matching.objectives import Cosine
from gradleak.matching.optimizers import Adam, Stopping
from gradleak.matching.problem import Matching


@dataclass(frozen=True, kw_only=True, slots=True)
class InvertingGradients(MatchingAttack):
    """Gradient matching in the cosine distance.

    min over x'  1 − cos(∇L(x', y), g) + total_variation · TV(x'),  Adam on the sign of the gradient, pixels boxed.

    Args:
        iterations: Adam steps; lr: in units of the data's typical spread (a quarter of the pixel range, or the
            embedding table's standard deviation); total_variation: weight of the prior, images only.
        restarts: starts optimized together; screened: random starts looked at first.
        balance: tensors are divided by their norm to this power; 0 is as published, 1 lets small tensors count.
        patience: iterations without 1 % progress before the search stops.

    Source: Geiping et al. 2020, arXiv 2003.14053.
    Deviations: tensors are balanced (see ``balance``); linear instead of stepwise decay; on text the sign is not taken
        and there is no prior.
    """

    summary: ClassVar[str] = "Gradient matching in the cosine distance; total variation on images."

    iterations: int = 400
    lr: float = 0.3
    total_variation: float = 0.01
    restarts: int = 1
    screened: int = 16
    balance: float = 1.0
    patience: int = 150

    def __post_init__(self) -> None:
        counts = ("iterations", "restarts", "screened")
        require_ranges(self, counts=counts, positive=("lr",), not_negative=("total_variation",))

    def parts(self, modality: Modality) -> Matching:
        image = modality == "image"
        optimizer = Adam(iterations=self.iterations, lr=self.lr, signed=image, box=(-2.0, 2.0) if image else None)
        return Matching(
            objective=Cosine(),
            optimizer=optimizer,
            stopping=Stopping(target=1e-7, patience=self.patience),
            restarts=self.restarts,
            screened=self.screened,
            balance=self.balance,
            total_variation=self.total_variation if image else 0.0,
        )
