"""The first space may be full, because the batch holds more tokens than the model is wide; then no token passes or fails
on its own, and the search is a joint one. It starts from candidates that the token and position tables place, where those
are trained. Must not know encoders, labels or losses.

Where no order can be told, the tokens often can, and beyond the width their places too. Must not know the ordered
searches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.core.attack import Clock, Reconstruction, Status
from gradleak.mechanics.embeddings.placement import place_tokens
from gradleak.mechanics.embeddings.rows import EmbeddingChannel
from gradleak.mechanics.probing.model import Model
from gradleak.span.beyond.reassignment import Assignment, reassign
from gradleak.span.candidates.types import Candidates
from gradleak.span.decoder.continuations import Grid
from gradleak.span.likelihood.co_membership import SameRecordEvidence
from gradleak.span.likelihood.gradient_likelihood import gradient_likelihoods
from gradleak.span.noise.record_search import JointResult, search_records_jointly
from gradleak.span.reading.evidence import AttackInput
from gradleak.span.reading.observed_layer import ObservedLayer

_LIKELY = 0.25
"""A token is a candidate where its share is at least this part of its largest."""
_BLOCKS = 2


def join_placed(
    update: Mapping[str, Tensor], model: Model, *, records: int, positions: int, rng: torch.Generator, clock: Clock
) -> JointResult | None:
    """Sequences from the tables' gradients and the gradient_likelihoods of the first blocks.

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
    same_record = SameRecordEvidence.of(rows, ids, model.vocab_size)
    preferred = gradient_likelihoods(update, model, lambda _: 0.0, blocks=_BLOCKS)
    placed = _placed(ids, shares)
    if not preferred or not placed.tokens[0].numel():  # nothing to begin a sentence with
        return None
    grid = Grid.of(placed, model.vocab_size, rng)
    joined = search_records_jointly(grid, preferred, model, records=records, clock=clock, same_record=same_record)
    return _settled(joined, shares, same_record) if len({len(s) for s in joined.sequences}) == 1 else joined


def _settled(joined: JointResult, shares: Tensor, same_record: SameRecordEvidence) -> JointResult:
    tokens, evidence = torch.stack(joined.sequences), torch.stack(joined.evidence)
    held = reassign(Assignment(tokens=same_record.numbers[tokens], evidence=evidence), shares, same_record)
    return replace(joined, sequences=tuple(same_record.ids[held.tokens]), evidence=tuple(held.evidence))


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


def tokens_only(case: AttackInput, candidates: Candidates, statistics: dict[str, float], why: str) -> Reconstruction:
    """What the first test alone gives: the nearest token per position for a single record, else a bag of tokens."""
    single = case.batch_size == 1 and candidates.positional
    bag = candidates.bag()
    return Reconstruction(
        records=(candidates.nearest[: candidates.length()].clone() if single else bag,),
        ordered=single,
        status=Status.UNDECIDED if case.pruned else Status.CONVERGED,
        message=f"{bag.numel()} tokens pass at the first attention, but {why}: "
        + ("the nearest token at each position, unconfirmed." if single else "a bag of tokens, without order."),
        adapted=case.adapted(),
        statistics=statistics,
    )


def mostly_unexplained(case: AttackInput, missed: float, proof: ObservedLayer) -> bool:
    """Whether more directions are missed than explained, and strangers may pass by chance: in a space that fills more than half of its
    width, or one of an undone AdamW step, whose noise has many sizes."""
    crowded = case.undone is not None or 2 * proof.space.rank > proof.space.features
    return crowded and 2 * missed > proof.space.inputs


def missing_inputs(records: tuple[Tensor, ...], first: ObservedLayer, candidates: Candidates) -> int:
    """Inputs that sketches of adapters count and that no record holds: a few conditions may fail to tell a continuation.

    Where the space is that of the inputs themselves, what is found is judged otherwise (drift and noise add directions).
    """
    if first.space.inputs == first.space.rank:
        return 0
    held = {(token, p if candidates.positional else 0) for record in records for p, token in enumerate(record.tolist())}
    return max(0, first.space.inputs - len(held))


def bag_of_embeddings(case: AttackInput, reason: str) -> Reconstruction | None:
    """The tokens from the rows of the embedding's gradient; None if it is not shared or does not tell them exactly."""
    channel = EmbeddingChannel.of(case.update, case.subject.anatomy)
    if channel is None or not channel.support.exact or not channel.support.ids.numel():
        return None
    support = channel.support
    at_least = " at least" if case.pruned else ""
    return Reconstruction(
        records=(support.ids,),
        ordered=False,
        status=Status.UNDECIDED if case.pruned else Status.CONVERGED,
        message=f"{reason} The rows of the embedding's gradient tell{at_least} {support.ids.numel()} tokens, without order.",
        statistics={"distinct_tokens": float(support.ids.numel())},
    )


def search_overcomplete(case: AttackInput, reason: str, rng: torch.Generator, clock: Clock) -> Reconstruction | None:
    """What the tables of tokens and positions tell where the spans are full: sentences, or a bag of tokens; None if nothing."""
    bag = bag_of_embeddings(case, reason)
    # Inputs that lost features at the client, and tables that lost entries, prefer wrong joints as much as right ones.
    unjoined = case.pruned or case.mismatch.dropout
    if bag is None or unjoined or case.batch_size is None or case.seq_len is None:
        return bag
    joined = join_placed(case.update, case.model, records=case.batch_size, positions=case.seq_len, rng=rng, clock=clock)
    records = () if joined is None else joined.supported()
    if joined is None or not covers_half(records, bag.records[0]):
        return replace(bag, status=Status.BUDGET_SPENT) if clock.spent() else bag
    undecided = case.batch_size * case.seq_len - sum(len(record) for record in records)
    return Reconstruction(
        records=records,
        status=Status.UNDECIDED if joined.finished else Status.BUDGET_SPENT,
        message=f"{reason} Tokens were placed by the gradients of the token and position tables and joined by the kinship of their error "
        f"signals and by what the first blocks prefer: {len(records)} sequences, likely and not proven; up to {undecided} tokens cannot be told.",
        adapted=case.adapted(),
        statistics={"tested": float(joined.tested), "distinct_tokens": float(bag.records[0].numel())},
    )


def covers_half(records: tuple[Tensor, ...], bag: Tensor) -> bool:
    found = torch.cat(records).unique() if records else bag[:0]
    return 2 * int(torch.isin(bag, found).sum()) >= len(bag)
