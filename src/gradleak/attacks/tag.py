"""TAG: match the gradient of a transformer in L2 plus a little L1, with Adam on the token embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gradleak.core.attack import Attack, Clock, Objective, Reconstruction
from gradleak.core.batch import Modality
from gradleak.core.errors import SpecError
from gradleak.core.knowledge import View
from gradleak.core.update import Update
from gradleak.mechanics import inversion
from gradleak.mechanics.objectives import Distance
from gradleak.mechanics.search import Adam, Stopping


@dataclass(frozen=True, kw_only=True, slots=True)
class TAG(Attack):
    """Transformer attack on gradients.

    min over embeddings x'  ‖g' − g‖₂² / ‖g‖₂² + l1·‖g' − g‖₁ / ‖g‖₁;  tokens are the nearest embeddings.

    Args:
        iterations: Adam steps; lr: in units of the embedding table's standard deviation; l1: weight of the L1 term.
        restarts: starts optimized together; screened: random starts looked at first.
        balance: tensors are divided by their norm to this power; 0 is as published, 1 lets small tensors count.
        patience: iterations without 1 % progress before the search stops.

    Source: Deng et al. 2021, arXiv 2103.06819.
    Deviations: both terms are relative (published: absolute, with a weight tuned to the model) and
        tensors are balanced; linear decay of the learning rate; a batch of one has its label read from the head's gradient.
    """

    summary: ClassVar[str] = "Gradient matching for text: L2 plus L1 distance, Adam on the embeddings."
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    needs: ClassVar[frozenset[str]] = inversion.NEEDS
    uses: ClassVar[frozenset[str]] = inversion.USES

    iterations: int = 400
    lr: float = 0.3
    l1: float = 1.0
    restarts: int = 1
    screened: int = 16
    balance: float = 1.0
    patience: int = 150

    def __post_init__(self) -> None:
        if min(self.iterations, self.restarts, self.screened) < 1 or not self.lr > 0 or self.l1 < 0:
            raise SpecError(
                "tag: iterations, restarts and screened must be at least 1, lr positive and l1 not negative."
            )

    def parts(self) -> inversion.Matching:
        return inversion.Matching(
            objective=Distance(l1=self.l1),
            optimizer=Adam(iterations=self.iterations, lr=self.lr),
            stopping=Stopping(target=1e-9, patience=self.patience),
            restarts=self.restarts,
            screened=self.screened,
            balance=self.balance,
        )

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        return inversion.invert(update, view, self.parts(), rng, clock)

    def objective(self, update: Update, view: View) -> Objective:
        return inversion.objective(update, view, self.parts())
