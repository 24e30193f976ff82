"""Anchors of the sentence search: families of pairs of which at least one is in the batch, and anchors joined to confident ones.
Must not know how an anchored sentence is solved for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.span.encoder.attention_equations import Pairs
from gradleak.span.encoder.subset_selection import Layout

_MORE_ANCHORS = 3
"""Positions that a later turn takes over, as further anchors, from where a single anchor got."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Family:
    """Pairs of which at least one is in the batch: all tokens of a position, or all positions of a token."""

    anchors: Int64[Tensor, " anchors"]
    token: bool

    def unexplained(self, pairs: Pairs, used: Float[Tensor, " pairs"]) -> Int64[Tensor, " anchors"]:
        """The anchors worth trying: none if a found sentence holds the token, else those that no sentence holds."""
        if self.token and bool(used[self.anchors].any()):
            return self.anchors[:0]
        return self.anchors[used[self.anchors] == 0]


def _with_confident(
    layout: Layout, pairs: Pairs, anchors: Int64[Tensor, " batch"], shares: Float[Tensor, "batch pairs"]
) -> Int64[Tensor, "batch anchors"]:
    """Each anchor with the pairs of other positions that hold the largest shares, positions without a choice last."""
    places = range(min(len(pairs.at), layout.positions))
    best = [shares[:, pairs.at[p]].max(1) for p in places]
    choice = torch.stack([pairs.at[p][b.indices] for p, b in zip(places, best, strict=True)], dim=1)
    sure = torch.stack([b.values - float(pairs.at[p].numel() == 1) for p, b in zip(places, best, strict=True)], dim=1)
    sure[pairs.places[anchors].unsqueeze(1) == torch.arange(len(best), device=sure.device)] = -torch.inf
    extra = sure.topk(min(_MORE_ANCHORS, len(best) - 1), dim=1).indices
    return torch.cat((anchors.unsqueeze(1), choice.gather(1, extra)), dim=1)
