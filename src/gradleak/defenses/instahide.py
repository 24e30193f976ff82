"""InstaHide mixes images as MixUp does and then flips signs at random. Magnitudes survive the flips."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gradleak.core.batch import TrainingData
from gradleak.core.stage import Client, DataStage
from gradleak.defenses._mixing import averages, check_mixing, guessed_weights, mixed

_MIDDLE = 0.5
"""Pixels are in [0, 1]; the sign of a pixel is that of its distance from the middle of the range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Instahide(DataStage):
    """Trains on averages of several images of the batch, every pixel mirrored at mid-gray with probability 1/2.

        x~_j = 1/2 + s ∘ (Σ_i λ_i x_i − 1/2),  s uniform on {−1, 1} per pixel and channel;  y~_j = Σ_i λ_i y_i
        λ and the partners as in ``mixup``

    Args:
        mix: images in a mixture, at least 2 (the paper uses 4 or 6).
        largest: upper limit of a weight, from a little over 1/mix to 1.

    Raises:
        SpecError: if an argument is out of range; when run, ``ModelError`` unless the model classifies images and
            ``DataError`` if the batch holds fewer than ``mix`` records.

    Guarantees:
        Fresh draws at each call, from ``rng`` alone. Pixels in [0, 1] stay there.
        |x~ − 1/2| does not depend on the signs. No differential privacy.

    Source: arXiv 2010.02772; broken by 2011.05315 from the magnitudes of many encodings, by the notes.
    Deviations: one draw per round, also where a round takes several local steps; partners come from the batch; no
        public images are mixed in.
    """

    summary: ClassVar[str] = "Trains on averages of several images of the batch whose pixels change sign at random."

    mix: int = 4
    largest: float = 0.65

    def __post_init__(self) -> None:
        check_mixing("instahide", self.mix, self.largest)

    def apply(self, client: Client, rng: torch.Generator) -> TrainingData:
        data = mixed(client, self.mix, self.largest, rng, name="instahide")
        coins = torch.randint(2, data.inputs.shape, generator=rng, device=rng.device)
        signs = (2 * coins - 1).to(data.inputs)
        return replace(data, inputs=_MIDDLE + signs * (data.inputs - _MIDDLE))

    def surrogate_is_identity(self) -> bool:
        return False

    def unknowns(self, records: int) -> tuple[int, ...]:
        return (records, records)

    def guessed(self, inputs: Tensor, targets: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, averages(guessed_weights(draw, self.mix), targets)
