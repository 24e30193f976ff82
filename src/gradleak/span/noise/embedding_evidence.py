"""Why: where token and position tables are trained, their gradients tell under noise which tokens a batch holds and where most of them
stand, before any space is looked at: candidates of the joint search. Must not know sequences or attention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int64
from scipy.special import chdtri
from torch import Tensor

from gradleak.mechanics.embeddings.placement import place_tokens
from gradleak.mechanics.embeddings.rows import EmbeddingChannel
from gradleak.models import Anatomy
from gradleak.span.noise.position_exchange import TableGradients
from gradleak.span.reading.observed_layer import FALSE_ALARM_RATE


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingEvidence:
    """What the tables show.

    Attributes:
        tokens: that occur, any of them false with probability at most ``FALSE_ALARM_RATE``.
        shares: how much of each stands where, as the tables have it; None where no position table was shared or noise hides some
            of its rows.
        tables: both gradients, in units of the noise on a position and the tokens at it.
    """

    tokens: Int64[Tensor, " tokens"]
    shares: Float[Tensor, "tokens positions"] | None = None
    tables: TableGradients | None = None

    @staticmethod
    def of(update: Mapping[str, Tensor], anatomy: Anatomy, *, positions: int) -> EmbeddingEvidence | None:
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
            return EmbeddingEvidence(tokens=tokens)
        rows, places, noise = (
            channel.rows[tokens].double(),
            channel.places[:positions].double(),
            channel.support.noise or 0.0,
        )
        each = math.hypot(channel.place_noise, noise * math.sqrt(len(tokens) / len(places))) or 1.0
        return EmbeddingEvidence(
            tokens=tokens,
            shares=place_tokens(rows, places, noise=noise),
            tables=TableGradients(rows=rows / each, places=places / each),
        )
