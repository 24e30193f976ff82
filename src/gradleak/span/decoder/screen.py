"""Why: nearly all continuations of a prefix are wrong, and so wrong that a few random columns of a test show it. Here is the
test that comes before the tests, with the factor by which so few columns err. Must not know how sequences are searched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from scipy.stats import f as ratio_of_variances
from torch import Tensor

from gradleak.mechanics.probing.heads import Heads
from gradleak.mechanics.probing.probe import chunks
from gradleak.mechanics.subspace.null_laws import log_odds
from gradleak.span.decoder.projections import Reading

_MISSED = 1e-6
"""Chance that a continuation half way between members and others is excluded; members are far less likely to be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Screen:
    """The readings by a few of their columns.

    Attributes:
        readings: the same tests by fewer columns; ``columns``: those of all of them, side by side.
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

    def since(self, start: int) -> Screen:
        """The same where sequences begin at position ``start``."""
        return replace(self, readings=tuple(reading.since(start) for reading in self.readings))

    def excludes(self, cuts: Mapping[int, float], usual: Mapping[int, float]) -> bool:
        """Whether a usual wrong continuation is excluded, given its residual in each reading and the null's cut there."""
        odds = 0.0
        for i, cut in cuts.items():
            space = self.readings[i].space
            member = space.typical if self.readings[i].widths[1] else space.worst
            odds += math.log(usual[i] / (self.errors[i] * math.sqrt(min(member, cut) * cut)))
        return odds > 0

    def keeps(
        self, heads: Heads, prefixes: Int64[Tensor, "prefixes before"], count: int, cuts: Mapping[int, float]
    ) -> Bool[Tensor, "prefixes extensions"]:
        """Which of the first ``count`` candidates may pass behind each prefix.

        Args:
            cuts: for each reading that decides, the null's cut.
        """
        rows, before = torch.arange(count, device=prefixes.device), prefixes.shape[1]
        widths = [reading.columns.shape[1] for reading in self.readings]
        kept = []
        for part in chunks(len(prefixes), 2 * count * heads.query.shape[2] * (before + 1)):
            made = heads.project(prefixes[part], rows, self.columns).split(widths, dim=-1)
            evidence = made[0].new_zeros(made[0].shape[:2], dtype=torch.float64)
            for i, cut in cuts.items():
                reading = self.readings[i]
                stream = 0.0 if reading.base is None else reading.base[rows, before]
                residual, expected = reading.read(made[i] + stream)
                expected = expected if reading.widths[1] else expected.new_tensor(reading.space.worst)
                evidence += log_odds(residual, expected, null_cut=cut) - math.log(self.errors[i])
            kept.append(evidence < 0)
        return torch.cat(kept)
