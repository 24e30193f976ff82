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
from gradleak.span.decoder.projections import Projection

_MISSED = 1e-6
"""Chance that a continuation half way between members and others is excluded; members are far less likely to be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefilter:
    """The projections by a few of their columns.

    Attributes:
        projections: the same tests by fewer columns; ``columns``: those of all of them, side by side.
        errors: factors by which they overstate a residual with probability ``_MISSED``: outside and length are both known from
            k columns, and the ratio of their squares is F-distributed with (k, k) degrees of freedom.
    """

    projections: tuple[Projection, ...]
    columns: Float[Tensor, "width columns"]
    errors: tuple[float, ...]

    @staticmethod
    def of(projections: Sequence[Projection], rng: torch.Generator) -> Prefilter:
        rough = tuple(projection.rough(rng) for projection in projections)
        degrees = [(projection.widths[0], projection.widths[2]) for projection in rough]
        return Prefilter(
            projections=rough,
            columns=torch.cat([projection.columns for projection in rough], dim=1),
            errors=tuple(math.sqrt(float(ratio_of_variances.isf(_MISSED, *each))) for each in degrees),
        )

    def since(self, start: int) -> Prefilter:
        """The same where sequences begin at position ``start``."""
        return replace(self, projections=tuple(projection.since(start) for projection in self.projections))

    def excludes(self, cuts: Mapping[int, float], usual: Mapping[int, float]) -> bool:
        """Whether a usual wrong continuation is excluded, given its residual in each projection and the null's cut there."""
        odds = 0.0
        for i, cut in cuts.items():
            space = self.projections[i].space
            member = space.typical if self.projections[i].widths[1] else space.worst
            odds += math.log(usual[i] / (self.errors[i] * math.sqrt(min(member, cut) * cut)))
        return odds > 0

    def keeps(
        self, heads: Heads, prefixes: Int64[Tensor, "prefixes before"], count: int, cuts: Mapping[int, float]
    ) -> Bool[Tensor, "prefixes extensions"]:
        """Which of the first ``count`` candidates may pass behind each prefix.

        Args:
            cuts: for each projection that decides, the null's cut.
        """
        rows, before = torch.arange(count, device=prefixes.device), prefixes.shape[1]
        widths = [projection.columns.shape[1] for projection in self.projections]
        kept = []
        for part in chunks(len(prefixes), 2 * count * heads.query.shape[2] * (before + 1)):
            made = heads.project(prefixes[part], rows, self.columns).split(widths, dim=-1)
            evidence = made[0].new_zeros(made[0].shape[:2], dtype=torch.float64)
            for i, cut in cuts.items():
                projection = self.projections[i]
                stream = 0.0 if projection.base is None else projection.base[rows, before]
                residual, expected = projection.read(made[i] + stream)
                expected = expected if projection.widths[1] else expected.new_tensor(projection.space.worst)
                evidence += log_odds(residual, expected, null_cut=cut) - math.log(self.errors[i])
            kept.append(evidence < 0)
        return torch.cat(kept)
