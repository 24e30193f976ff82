"""Gauss–Newton: match the gradient in the Euclidean distance with its own curvature, by Levenberg–Marquardt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradleak.core.batch import Modality
from gradleak.core.specs import require_ranges
from gradleak.matching.attack import MatchingAttack
from gradleak.matching.gauss_newton import GaussNewton as Solver
from gradleak.matching.objectives import Distance
from gradleak.matching.optimizers import Stopping
from gradleak.matching.problem import Matching


@dataclass(frozen=True, kw_only=True, slots=True)
class GaussNewton(MatchingAttack):
    """Gradient matching as the least-squares problem that it is.

    min over (x', y')  ‖∇L(x', y') − g‖² / ‖g‖²,  by (JᵀJ + μ) δ = −Jᵀ(∇L − g),  J the derivative of the simulated update.

    J is used in products only, solved by conjugate gradients, for all restarts together. JᵀJ is positive semidefinite
    everywhere; the full Hessian is indefinite already close to the truth, and Newton's method with it is worse
    (``docs/theory/recovery.md``). Near the truth convergence is quadratic where J has full rank.

    Args:
        iterations: linearizations; inner: most products with JᵀJ for one step.
        restarts: starts that are optimized together; screened: random starts looked at first.
        balance: tensors are divided by their norm to this power; 0 is plain, 1 lets small tensors count.
        patience: iterations without 1 % progress before the search stops.
        space: ``span`` searches only embeddings whose first inputs lie in the span of that layer's gradients, where that is
            certain (two blocks or more, no stage, every token read by the loss); ``all`` searches everywhere.

    Source: Levenberg–Marquardt with Nielsen's damping, on the objective of Zhu, Liu, Han 2019, arXiv 1906.08935.
    """

    summary: ClassVar[str] = (
        "Gradient matching in the Euclidean distance by Levenberg–Marquardt, soft labels searched too."
    )

    iterations: int = 40
    inner: int = 40
    restarts: int = 2
    screened: int = 16
    balance: float = 1.0
    patience: int = 8
    space: str = "span"

    def __post_init__(self) -> None:
        require_ranges(self, counts=("iterations", "inner", "restarts", "screened"))

    def parts(self, modality: Modality) -> Matching:
        return Matching(
            objective=Distance(),
            optimizer=Solver(iterations=self.iterations, inner=self.inner),
            stopping=Stopping(target=1e-8, patience=self.patience),
            restarts=self.restarts,
            screened=self.screened,
            balance=self.balance,
            space="span" if self.space == "span" else "all",
        )
