"""Why: where token and position tables are trained, their gradients tell under noise which tokens a batch holds and where most of them
stand, before any space is looked at: candidates of the joint search. Must not know sequences or attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from scipy.special import chdtri
from torch import Tensor

from gradleak.mechanics.embedding_channel import EmbeddingChannel
from gradleak.mechanics.span_placement import likely_places, place_tokens
from gradleak.mechanics.span_readers import FALSE_ALARM_RATE
from gradleak.models import Anatomy

Pairs = tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]
"""Tokens and their positions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tabled:
    """What the tables show.

    Attributes:
        tokens: that occur, any of them false with probability at most ``FALSE_ALARM_RATE``.
        pairs: where they may stand, likeliest first; None where no position table was shared or noise hides some of its rows.
        positions: that were looked at.
    """

    tokens: Int64[Tensor, " tokens"]
    pairs: Pairs | None
    positions: int

    def rows(self, pairs: Pairs) -> Int64[Tensor, " pairs"]:
        """Numbers of pairs where all tokens at the first position come first, then all at the second."""
        order = self.tokens.argsort()
        return pairs[1] * len(self.tokens) + order[torch.searchsorted(self.tokens[order], pairs[0])]

    @staticmethod
    def of(update: Mapping[str, Tensor], anatomy: Anatomy, *, positions: int) -> Tabled | None:
        """None if the token table was not shared, or holds no signal that can be told from its background."""
        channel = EmbeddingChannel.of(update, anatomy)
        if channel is None or not channel.support.reliable or not len(channel.support.ids):
            return None
        ids = channel.support.ids
        energy = channel.rows[ids].double().square().sum(dim=1)
        least = (channel.support.noise or 0.0) ** 2 * float(
            chdtri(channel.rows.shape[1], FALSE_ALARM_RATE / len(channel.rows))
        )
        tokens = ids[energy > least]
        if not len(tokens):
            return None
        if channel.places is None or channel.longest is None:
            return Tabled(tokens=tokens, pairs=None, positions=positions)
        shares = place_tokens(channel.rows[tokens], channel.places[:positions])
        rows, places = likely_places(shares).nonzero(as_tuple=True)
        order = shares[rows, places].argsort(descending=True)
        return Tabled(tokens=tokens, pairs=(tokens[rows[order]], places[order]), positions=positions)
