"""Why: where no order can be told, the tokens often can, and beyond the width their places too. Must not know the ordered
searches.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gradleak.core.attack import Clock, Reconstruction, Status
from gradleak.mechanics.embeddings.rows import EmbeddingChannel
from gradleak.span.beyond.search import join_placed
from gradleak.span.reading.evidence import SpanCase
from gradleak.span.reading.readers import Candidates, Reader


def tokens_only(case: SpanCase, candidates: Candidates, statistics: dict[str, float], why: str) -> Reconstruction:
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


def mostly_unexplained(case: SpanCase, missed: float, proof: Reader) -> bool:
    """Whether more directions are missed than explained, and strangers may pass by chance: in a space that fills more than half of its
    width, or one of an undone AdamW step, whose noise has many sizes."""
    crowded = case.undone is not None or 2 * proof.space.rank > proof.space.features
    return crowded and 2 * missed > proof.space.inputs


def missing_inputs(records: tuple[Tensor, ...], first: Reader, candidates: Candidates) -> int:
    """Inputs that sketches of adapters count and that no record holds: a few conditions may fail to tell a continuation.

    Where the space is that of the inputs themselves, what is found is judged otherwise (drift and noise add directions).
    """
    if first.space.inputs == first.space.rank:
        return 0
    held = {(token, p if candidates.positional else 0) for record in records for p, token in enumerate(record.tolist())}
    return max(0, first.space.inputs - len(held))


def bag_of_embeddings(case: SpanCase, reason: str) -> Reconstruction | None:
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


def beyond(case: SpanCase, reason: str, rng: torch.Generator, clock: Clock) -> Reconstruction | None:
    """What the tables of tokens and positions tell where the spans are full: sentences, or a bag of tokens; None if nothing."""
    bag = bag_of_embeddings(case, reason)
    # Inputs that lost features at the client, and tables that lost entries, prefer wrong joints as much as right ones.
    unjoined = case.pruned or case.departure.dropout
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
