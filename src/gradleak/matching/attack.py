"""An attack that matches updates is a choice of parts and nothing else; what follows from the choice is written once.
Must not know any attack.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, final

import torch

from gradleak.core.attack import Attack, Clock, Objective, Reconstruction
from gradleak.core.batch import Modality
from gradleak.core.knowledge import View
from gradleak.core.update import Update
from gradleak.matching import engine as inversion


class MatchingAttack(Attack):
    """Looks for the batch whose simulated update resembles the observed one, with the parts that a subclass names."""

    needs: ClassVar[frozenset[str]] = inversion.NEEDS
    uses: ClassVar[frozenset[str]] = inversion.USES

    @abstractmethod
    def parts(self, modality: Modality) -> inversion.Matching:
        """The parts for records of this kind."""

    @final
    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        return inversion.invert(update, view, self.parts(view["subject"].modality), rng, clock)

    @final
    def objective(self, update: Update, view: View) -> Objective:
        return inversion.objective(update, view, self.parts(view["subject"].modality))
