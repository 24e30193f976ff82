"""Why: nearly all continuations of a prefix are wrong, and so wrong that a few random columns of a test show it. Here is the
test that comes before the tests, with the factor by which so few columns err. Must not know how sequences are searched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from scipy.stats import f as ratio_of_variances
from torch import Tensor

from gradleak.mechanics.heads import Heads
from gradleak.mechanics.probe import chunks
from gradleak.mechanics.span_reading import Reading

_MISSED = 1e-6
"""Chance that a continuation half way between members and others is excluded; members are far less likely to be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Screen:
    """The readings by a few of their columns.

    Attributes:
        readings: the same tests, without tilts; ``columns``: those of all of them, side by side.
        errors: factors by which they overstate a residual with probability ``_MISSED``: outside and length are both known from
            k columns, and the ratio of their squares is F-distributed with (k, k) degrees of freedom.
    """

    readings: tuple[Reading, ...]
    columns: Float[Tensor, "width columns"]
    errors: tuple[float, ...]

    @staticmethod
    def of(readings: Sequence[Reading], rng: torch.Generator) -> Screen:
        rough = tuple(reading.rough(rng) for reading in readings)
        degrees = [(reading.widths[0], reading.widths[2]) for reading in rough]
        return Screen(
            readings=rough,
            columns=torch.cat([reading.columns for reading in rough], dim=1),
            errors=tuple(math.sqrt(float(ratio_of_variances.isf(_MISSED, *each))) for each in degrees),
        )

    def threshold(self, middles: Mapping[int, float]) -> float:
        """What the logarithms of the residuals of some readings may add up to, if ``middles`` decide between both sides."""
        return sum(math.log(self.errors[i] * middle) for i, middle in middles.items())

    def keeps(
        self, heads: Heads, prefixes: Int64[Tensor, "prefixes before"], count: int, middles: Mapping[int, float]
    ) -> Bool[Tensor, "prefixes extensions"]:
        """Which of the first ``count`` candidates may pass behind each prefix.

        Args:
            middles: for each reading that decides, the residual half way between members and others.
        """
        rows, before = torch.arange(count, device=prefixes.device), prefixes.shape[1]
        kept, threshold = [], self.threshold(middles)
        widths = [reading.columns.shape[1] for reading in self.readings]
        for part in chunks(len(prefixes), 2 * count * heads.query.shape[2] * (before + 1)):
            made = heads.project(prefixes[part], rows, self.columns).split(widths, dim=-1)
            evidence = torch.zeros(made[0].shape[:2], dtype=torch.float64)
            for i in middles:
                reading = self.readings[i]
                stream = 0.0 if reading.base is None else reading.base[rows, before]
                evidence += reading.read(made[i] + stream)[0].clamp(min=1e-30).log()
            kept.append(evidence < threshold)
        return torch.cat(kept)
