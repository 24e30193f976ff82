"""Why: the first space may be full, because the batch holds more tokens than the model is wide; then no token passes or fails
on its own, and the search is a joint one. It starts from candidates that the token and position tables place, where those
are trained. Must not know encoders, labels or losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.mechanics.embeddings.placement import place_tokens
from gradleak.mechanics.embeddings.rows import EmbeddingChannel
from gradleak.span.beyond.reassignment import Held, fill_anew
from gradleak.span.decoder.continuations import Grid
from gradleak.span.likelihood.co_membership import Kin
from gradleak.span.likelihood.reading import preferences
from gradleak.span.noise.record_search import Joined, grow_jointly
from gradleak.span.reading.readers import Candidates, Model

_LIKELY = 0.25
"""A token is a candidate where its share is at least this part of its largest."""
_BLOCKS = 2


def join_placed(
    update: Mapping[str, Tensor], model: Model, *, records: int, positions: int, rng: torch.Generator, clock: Clock
) -> Joined | None:
    """Sequences from the tables' gradients and the preferences of the first blocks.

    Returns:
        None unless the model adds trained positions to tokens and shares the gradients of both tables.
    """
    anatomy = model.subject.anatomy
    token, position = anatomy.token_embedding, anatomy.position_embedding
    if anatomy.kind != "decoder" or token is None or position is None or not {token, position} <= update.keys():
        return None
    channel = EmbeddingChannel.of(update, anatomy)
    if channel is None or not channel.support.exact or channel.places is None:
        return None
    ids, used = channel.support.ids, channel.places[:positions]
    if len(used) < 2:
        return None
    rows = channel.rows[ids]
    del channel
    shares = place_tokens(rows, used, clock=clock)
    kin = Kin.of(rows, ids, model.vocab_size)
    preferred = preferences(update, model, lambda _: 0.0, blocks=_BLOCKS)
    placed = _placed(ids, shares)
    if not preferred or not placed.tokens[0].numel():  # nothing to begin a sentence with
        return None
    grid = Grid.of(placed, model.vocab_size, rng)
    joined = grow_jointly(grid, preferred, model, records=records, clock=clock, kin=kin)
    return _settled(joined, shares, kin) if len({len(s) for s in joined.sequences}) == 1 else joined


def _settled(joined: Joined, shares: Tensor, kin: Kin) -> Joined:
    tokens, evidence = torch.stack(joined.sequences), torch.stack(joined.evidence)
    held = fill_anew(Held(tokens=kin.numbers[tokens], evidence=evidence), shares, kin)
    return replace(joined, sequences=tuple(kin.ids[held.tokens]), evidence=tuple(held.evidence))


def _placed(tokens: Int64[Tensor, " tokens"], shares: Float[Tensor, "tokens positions"]) -> Candidates:
    likely = shares >= _LIKELY * shares.amax(dim=1, keepdim=True)
    columns = [likely[:, p].nonzero().flatten() for p in range(shares.shape[1])]
    ordered = [rows[shares[rows, p].argsort(descending=True)] for p, rows in enumerate(columns)]
    return Candidates(
        tokens=tuple(tokens[rows] for rows in ordered),
        residuals=tuple(1 - shares[rows, p] for p, rows in enumerate(ordered)),
        nearest=tokens[shares.argmax(dim=0)],
        null_cut=1.0,
        positional=True,
    )
