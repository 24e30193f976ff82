"""Inverting Gradients: match the gradient's direction, with total variation on images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gradleak.core.attack import Attack, Clock, Objective, Reconstruction
from gradleak.core.errors import SpecError
from gradleak.core.knowledge import View
from gradleak.core.update import Update
from gradleak.mechanics import inversion
from gradleak.mechanics.objectives import Cosine
from gradleak.mechanics.search import Adam, Stopping


@dataclass(frozen=True, kw_only=True, slots=True)
class InvertingGradients(Attack):
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
    needs: ClassVar[frozenset[str]] = inversion.NEEDS
    uses: ClassVar[frozenset[str]] = inversion.USES

    iterations: int = 400
    lr: float = 0.3
    total_variation: float = 0.01
    restarts: int = 1
    screened: int = 16
    balance: float = 1.0
    patience: int = 150

    def __post_init__(self) -> None:
        if min(self.iterations, self.restarts, self.screened) < 1 or not self.lr > 0 or self.total_variation < 0:
            raise SpecError(
                "inverting_gradients: iterations, restarts and screened must be at least 1, lr positive and "
                "total_variation not negative."
            )

    def parts(self, *, image: bool) -> inversion.Matching:
        optimizer = Adam(iterations=self.iterations, lr=self.lr, signed=image, box=(-2.0, 2.0) if image else None)
        return inversion.Matching(
            objective=Cosine(),
            optimizer=optimizer,
            stopping=Stopping(target=1e-7, patience=self.patience),
            restarts=self.restarts,
            screened=self.screened,
            balance=self.balance,
            total_variation=self.total_variation if image else 0.0,
        )

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        return inversion.invert(update, view, self.parts(image=_is_image(view)), rng, clock)

    def objective(self, update: Update, view: View) -> Objective:
        return inversion.objective(update, view, self.parts(image=_is_image(view)))


def _is_image(view: View) -> bool:
    return bool(view["subject"].modality == "image")
