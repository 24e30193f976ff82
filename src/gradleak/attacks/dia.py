"""The Dropout Inversion Attack: masks are unknowns like the image, and are optimized with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from gradleak.core.attack import Attack, Clock, Objective, Reconstruction
from gradleak.core.errors import SpecError
from gradleak.core.knowledge import View
from gradleak.core.update import Update
from gradleak.matching import engine as inversion
from gradleak.matching.objectives import Distance
from gradleak.matching.optimizers import LBFGS, Stopping


@dataclass(frozen=True, kw_only=True, slots=True)
class DIA(Attack):
    """Gradient matching over the input and everything that layers of the model drew at random.

    min over (x', m)  ‖∇L(x', y; m) − g‖² / ‖g‖² + penalty · mean over layers |average(m) − E m|,  by L-BFGS;
    for dropout at rate p the masks m are relaxed to (0, 1), start at their mean E m = 1 − p and share that average

    Args:
        iterations: L-BFGS iterations; restarts: starts optimized together; screened: random starts looked at first.
        penalty: weight of an average that is not the expected one, at least 0.
        balance: tensors are divided by their norm to this power.
        patience: iterations without 1 % progress before the search stops.

    Guarantees:
        Without such layers, to an adversary who does not know the stages, or on an update of several draws, only the
        input is searched, at the layers' mean: then this is DLG with inferred labels.

    Source: Scheliga et al., Dropout is NOT All You Need to Prevent Gradient Leakage (AAAI 2023), by the notes on its code:
        joint masks and the penalty with its weight.
    Deviations: L-BFGS on a logistic relaxation instead of Adam with clipping; masks start at their mean, not at a draw;
        no total variation. The same search serves bottlenecks, whose code noise it optimizes.
    """

    summary: ClassVar[str] = (
        "Gradient matching that searches dropout masks and other random layers along with the input."
    )
    needs: ClassVar[frozenset[str]] = inversion.NEEDS
    uses: ClassVar[frozenset[str]] = inversion.USES

    iterations: int = 400
    restarts: int = 4
    screened: int = 16
    penalty: float = 1e-4
    balance: float = 1.0
    patience: int = 100

    def __post_init__(self) -> None:
        if min(self.iterations, self.restarts, self.screened) < 1 or not 0 <= self.penalty < math.inf:
            raise SpecError("dia: iterations, restarts and screened must be at least 1, penalty finite and at least 0.")

    def parts(self) -> inversion.Matching:
        return inversion.Matching(
            objective=Distance(),
            optimizer=LBFGS(iterations=self.iterations),
            stopping=Stopping(target=1e-10, patience=self.patience),
            restarts=self.restarts,
            screened=self.screened,
            balance=self.balance,
            noise_penalty=self.penalty,
        )

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        return inversion.invert(update, view, self.parts(), rng, clock)

    def objective(self, update: Update, view: View) -> Objective:
        return inversion.objective(update, view, self.parts())
