"""DLG: match the gradient in the Euclidean distance with L-BFGS, searching soft labels along with the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradleak.core.batch import Modality
from gradleak.core.specs import require_ranges
from gradleak.matching.attack import MatchingAttack
from gradleak.matching.objectives import Distance
from gradleak.matching.optimizers import LBFGS, Stopping
from gradleak.matching.problem import Matching


@dataclass(frozen=True, kw_only=True, slots=True)
class DLG(MatchingAttack):
    """Deep Leakage from Gradients.

    min over (x', y')  ‖∇L(x', y') − g‖² / ‖g‖²,  y' = softmax(free logits), by L-BFGS.

    Args:
        iterations: L-BFGS iterations; restarts: starts optimized together; screened: random starts looked at first.
        balance: tensors are divided by their norm to this power; 0 is as published, 1 lets small tensors count.
        patience: iterations without 1 % progress before the search stops.

    Source: Zhu, Liu, Han 2019, arXiv 1906.08935.
    Deviations: tensors are balanced (see ``balance``); all restarts share one batched L-BFGS with a backtracking line
        search; labels are used if they are known.
    """

    summary: ClassVar[str] = "Gradient matching in the Euclidean distance by L-BFGS, soft labels searched too."

    iterations: int = 120
    restarts: int = 2
    screened: int = 16
    balance: float = 1.0
    patience: int = 40

    def __post_init__(self) -> None:
        require_ranges(self, counts=("iterations", "restarts", "screened"))

    def parts(self, modality: Modality) -> Matching:
        return Matching(
            objective=Distance(),
            optimizer=LBFGS(iterations=self.iterations),
            stopping=Stopping(target=1e-10, patience=self.patience),
            restarts=self.restarts,
            screened=self.screened,
            balance=self.balance,
            labels="search",
        )
