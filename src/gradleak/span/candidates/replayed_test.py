"""The membership test by running the model: a row of one token repeated gives its input at all positions in one pass.
Must not know which candidates are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from scipy.stats import f as ratio_of_variances
from torch import Tensor

from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import LargestTensor, chunks
from gradleak.span.candidates.factored_test import _MISSED, _SKETCH_COLUMNS
from gradleak.span.reading.observed_layer import ObservedLayer


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayedTest:
    """The test by running the model: a row of one token repeated gives its input at all positions in one pass."""

    reader: ObservedLayer
    model: Model
    width: int
    rng: torch.Generator

    @property
    def floats_each(self) -> int:
        with LargestTensor() as needed:
            self.model.inputs((self.reader,), torch.zeros(1, self.width, dtype=torch.int64))
        return max(needed.numel, self.width * self.reader.space.features)

    def judge(self, ids: Int64[Tensor, " tokens"]) -> tuple[Tensor, Tensor]:
        (z,) = self.model.inputs((self.reader,), ids.unsqueeze(1).expand(-1, self.width))
        return self.reader.space.residual(z), self.reader.space.expected(z)

    def weigh(self, ids: Int64[Tensor, " tokens"], root: Float[Tensor, "features columns"]) -> Tensor:
        (z,) = self.model.inputs((self.reader,), ids.unsqueeze(1).expand(-1, self.width))
        return (z @ root.to(z.dtype)).square().sum(-1) / z.square().sum(-1).clamp(min=1e-30)

    def screen(self, below: float) -> Int64[Tensor, " tokens"]:
        error = math.sqrt(float(ratio_of_variances.isf(_MISSED, _SKETCH_COLUMNS, self.reader.space.features)))
        return torch.cat([ids[rough.amin(dim=1) < error * below] for ids, rough in self._rough()])

    def nearest(self, places: Int64[Tensor, " places"]) -> Int64[Tensor, " places"]:
        nearest, least = torch.zeros_like(places), self.reader.space.basis.new_full((len(places),), math.inf)
        for ids, rough in self._rough():
            values, best = rough[:, places].min(dim=0)
            nearest, least = torch.where(values < least, ids[best], nearest), torch.minimum(values, least)
        return nearest

    def _rough(self) -> Iterator[tuple[Int64[Tensor, " tokens"], Float[Tensor, "tokens positions"]]]:
        """Tokens, some at a time, with what a few columns make of their residuals."""
        sketch = self.reader.space.sketch(_SKETCH_COLUMNS, self.rng)
        for part in chunks(self.model.vocab_size, self.floats_each):
            ids = torch.arange(part.start, part.stop, device=sketch.device)
            (z,) = self.model.inputs((self.reader,), ids.unsqueeze(1).expand(-1, self.width))
            length = z.norm(dim=-1)
            yield ids, torch.where(length > 0, (z @ sketch.to(z.dtype)).norm(dim=-1) / length, math.inf)
