"""MixUp trains on averages of records. It was made against overfitting; as a defense it hides a record among a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradleak.core.batch import TrainingData
from gradleak.core.stage import Client, DataStage
from gradleak.defenses._mixing import averages, check_mixing, guessed_weights, mixed


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixup(DataStage):
    """Trains on weighted averages of several images of the batch, with labels averaged alike.

        x~_j = Σ_i λ_i x_i,  y~_j = Σ_i λ_i y_i;   λ ~ Dirichlet(3, 1, ..., 1), no weight above ``largest``;
        the first weight is that of record j, the others go to other records of the batch, drawn at random

    Args:
        mix: images in a mixture, at least 2.
        largest: upper limit of a weight, from a little over 1/mix to 1.

    Raises:
        SpecError: if an argument is out of range; when run, ``ModelError`` unless the model classifies images and
            ``DataError`` if the batch holds fewer than ``mix`` records.

    Guarantees:
        Fresh draws at each call, from ``rng`` alone. Averages keep pixels within the range of the records.
        An attack that matches the update finds mixtures. Before the limit, a mixture holds its own record with expected
        weight 3/(mix + 2) and each other with 1/(mix + 2). No differential privacy.

    Source: arXiv 1710.09412; law and limits as in the code of InstaHide, by the notes.
    Deviations: one draw per round, also where a round takes several local steps; partners come from the batch.
    """

    summary: ClassVar[str] = "Trains on weighted averages of several images of the batch and of their labels."

    mix: int = 4
    largest: float = 0.65

    def __post_init__(self) -> None:
        check_mixing("mixup", self.mix, self.largest)

    def apply(self, client: Client, rng: torch.Generator) -> TrainingData:
        return mixed(client, self.mix, self.largest, rng, name="mixup")

    def surrogate_is_identity(self) -> bool:
        return False

    def unknowns(self, records: int) -> tuple[int, ...]:
        return (records, records)

    def guessed(self, inputs: Tensor, targets: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        weights = guessed_weights(draw, self.mix)
        return averages(weights, inputs), averages(weights, targets)
