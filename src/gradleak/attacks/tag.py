"""TAG: match the gradient of a transformer in L2 plus a little L1, with Adam on the token embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradleak.core.batch import Modality
from gradleak.core.specs import require_ranges
from gradleak.matching.attack import MatchingAttack
from gradleak.matching.objectives import Distance
from gradleak.matching.optimizers import Adam, Stopping
from gradleak.matching.problem import Matching


@dataclass(frozen=True, kw_only=True, slots=True)
class TAG(MatchingAttack):
    """Transformer attack on gradients.

    min over embeddings x'  ‖g' − g‖₂² / ‖g‖₂² + l1·‖g' − g‖₁ / ‖g‖₁;  tokens are the nearest embeddings.

    Args:
        iterations: Adam steps; lr: in units of the embedding table's standard deviation; l1: weight of the L1 term.
        restarts: starts optimized together; screened: random starts looked at first.
        balance: tensors are divided by their norm to this power; 0 is as published, 1 lets small tensors count.
        patience: iterations without 1 % progress before the search stops.

    Source: Deng et al. 2021, arXiv 2103.06819.
    Deviations: both terms are relative (published: absolute, with a weight tuned to the model) and
        tensors are balanced; linear decay of the learning rate; tokens that frame a text are known; a batch of one has its label read from the head's gradient.
    """

    summary: ClassVar[str] = "Gradient matching for text: L2 plus L1 distance, Adam on the embeddings."
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})

    iterations: int = 400
    lr: float = 0.3
    l1: float = 1.0
    restarts: int = 1
    screened: int = 16
    balance: float = 1.0
    patience: int = 150

    def __post_init__(self) -> None:
        require_ranges(self, counts=("iterations", "restarts", "screened"), positive=("lr",), not_negative=("l1",))

    def parts(self, modality: Modality) -> Matching:
        return Matching(
            objective=Distance(l1=self.l1),
            optimizer=Adam(iterations=self.iterations, lr=self.lr),
            stopping=Stopping(target=1e-9, patience=self.patience),
            restarts=self.restarts,
            screened=self.screened,
            balance=self.balance,
        )
