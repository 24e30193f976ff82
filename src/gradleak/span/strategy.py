"""Which search is asked, in which order, and whose answer stands.

Tokens are tested one by one at the first attention, then put in order behind it: prefix by prefix in a decoder, whole
sentences at once in an encoder. Noise hides directions of the update, so a search token by token may miss what a joint one
still sees; more tokens than dimensions leave a bag. Must not know how any of the searches goes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gradleak.core.attack import Clock, Reconstruction, Status
from gradleak.core.errors import NotApplicableError
from gradleak.span.beyond.search import (
    bag_of_embeddings,
    covers_half,
    missing_inputs,
    mostly_unexplained,
    search_overcomplete,
    tokens_only,
)
from gradleak.span.candidates.types import Candidates
from gradleak.span.candidates.window import candidates_of
from gradleak.span.decoder.continuations import CachedAttention, FullForward, Grid, open_first
from gradleak.span.decoder.later_layers import LaterLayers
from gradleak.span.decoder.prefix_search import SearchResult, beam_search
from gradleak.span.encoder.lengths import lengths_of_sentences
from gradleak.span.encoder.sentence_search import SentenceResult, SentenceSearch
from gradleak.span.likelihood.confidence import token_confidence
from gradleak.span.likelihood.gradient_likelihood import gradient_likelihoods
from gradleak.span.noise.decoder_search import NoisySearchResult, explain_noisy, measured_noise
from gradleak.span.noise.embedding_evidence import EmbeddingEvidence
from gradleak.span.noise.encoder_candidates import candidate_sets, noise_may_mask
from gradleak.span.outcome.outcome import (
    Outcome,
    conclude,
    outcome_of_assembly,
    outcome_of_growth,
    passed_every_test,
    statistics_of,
    status_of,
)
from gradleak.span.reading.evidence import AttackInput, closing_token
from gradleak.span.reading.observed_layer import (
    ObservedLayer,
    context_layers,
    first_layer,
    hides_first_position,
    later_layers,
)
from gradleak.span.reading.pruned import space_of_known_tokens, undetermined_reason
from gradleak.span.statistics import MISSED_DIRECTIONS, TESTED
from gradleak.span.with_prior.attribution import search_with_prior

_PLACES = 2
"""Places that are asked how probable a token is: the first behind the first attention, in the order of their cost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How far the searches go.

    Attributes:
        beam: most prefixes of one length that are kept, per record of the batch.
        rounds: passes of the sentence search over all positions before it gives up.
    """

    beam: int
    rounds: int


def recover(case: AttackInput, effort: Effort, rng: torch.Generator, clock: Clock) -> Reconstruction:
    """The batch behind an update: the ordered search, and the bag of tokens where that tells more.

    Raises:
        NotApplicableError: if the update holds nothing that a token could be tested against.
    """
    evidence = {"noise_std": case.noise_std, "summands": case.summands, "mismatch": case.mismatch}
    first = space_of_known_tokens(case, first_layer(case.readable, case.model, **evidence))
    if first.space.guessed and not first.space.noisy and case.silent:
        found = search_overcomplete(case, _full(first), rng, clock)
        if found is not None:
            return found
    try:
        found = _search(case, effort, first, evidence, rng, clock)
    except NotApplicableError as reason:
        found = search_overcomplete(case, str(reason), rng, clock) or search_when_no_token_passes(
            case, first, rng, clock
        )
        if found is None:
            raise
        return found
    if found.ordered and len(found.records) == case.batch_size and found.status is not Status.UNDECIDED:
        return found
    bag = bag_of_embeddings(case, found.message)
    # Records that a certificate does not confirm are kept all the same, and what is left out is no reason to doubt the rest; what noise leaves
    # unexplained is.
    doubted = found.status is Status.UNDECIDED and bool(found.statistics.get("unexplained_directions"))
    if bag is None or (not doubted and covers_half(found.records, bag.records[0])):
        return found
    if found.status is Status.BUDGET_SPENT:
        return replace(bag, status=Status.BUDGET_SPENT)
    return search_overcomplete(case, found.message, rng, clock) or bag


def _search(
    case: AttackInput,
    effort: Effort,
    first: ObservedLayer,
    evidence: Mapping[str, Any],
    rng: torch.Generator,
    clock: Clock,
) -> Reconstruction:
    decoder = case.subject.anatomy.kind == "decoder"
    sets = iter((candidates_of(case, first, rng),)) if decoder else candidate_sets(case, first, rng)
    candidates = next(sets)
    if not candidates.length():
        return search_when_no_token_passes(case, first, rng, clock) or Reconstruction(
            status=Status.NOTHING_FOUND,
            message=f"No token of the vocabulary lies in the span of rank {first.space.rank} of {first.space.features}."
            + (first.hint or _foreign(first)),
            adapted=case.adapted(),
            statistics=statistics_of(first, (), candidates),
        )
    # A space that the inputs merely lie in counts none of them.
    count = 0 if first.left_out else first.space.inputs
    readers = context_layers(case.readable, case.model, expected_rank=count, **evidence)
    if not readers:
        return tokens_only(
            case,
            candidates,
            statistics_of(first, (), candidates),
            "no layer behind the first attention tells their order"
            + _blind_spot(case, first)
            + undetermined_reason(case, next(iter(case.subject.anatomy.maps_behind()))),
        )
    if decoder:
        outcome = _grow(case, effort, first, candidates, readers, evidence, rng, clock)
    else:
        candidates, outcome = _assemble(case, effort, first, chain((candidates,), sets), readers, rng, clock)
    statistics = statistics_of(first, readers, candidates) | dict(outcome.statistics)
    spent = outcome.status is Status.BUDGET_SPENT
    if not outcome.records and (not spent or not decoder):
        why = "the budget ended before any" if spent else "no"
        why += " sequence of them passes behind the first attention" + _blind_spot(case, first)
        bag = tokens_only(case, candidates, statistics, why)
        return replace(bag, status=Status.BUDGET_SPENT) if spent else bag
    if not spent:
        if mostly_unexplained(case, outcome.statistics.get(MISSED_DIRECTIONS, 0.0), readers[-1]):
            why = "most directions behind the first attention belong to none of the sequences that pass"
            return tokens_only(case, candidates, statistics, why)
        if missing := missing_inputs(outcome.records, first, candidates):
            why = f"the sequences that pass behind the first attention lack {missing} inputs"
            return tokens_only(case, candidates, statistics, why)
    return conclude(case, outcome, statistics, rng, clock)


def _grow(
    case: AttackInput,
    effort: Effort,
    first: ObservedLayer,
    candidates: Candidates,
    readers: tuple[ObservedLayer, ...],
    evidence: Mapping[str, Any],
    rng: torch.Generator,
    clock: Clock,
) -> Outcome:
    beam = effort.beam * (case.batch_size or 16)

    def growth(candidates: Candidates) -> SearchResult:
        grid = Grid.of(candidates, case.model.vocab_size, rng)
        attended = CachedAttention.of(grid, readers, case.model, rng)
        continuations = attended or FullForward(grid=grid, readers=readers, model=case.model)
        return beam_search(
            grid,
            continuations,
            readers[-1],
            case.model,
            beam=beam,
            at_most=case.batch_size,
            clock=clock,
            directions=directions,
            positional=candidates.positional,
            later=functools.cache(lambda: later_of(grid)),
        )

    @functools.cache
    def observed_later() -> tuple[ObservedLayer, ...]:
        return later_layers(case.readable, case.model, readers[-1], length=candidates.length(), **evidence)

    def later_of(grid: Grid) -> LaterLayers | None:
        layers = observed_later()
        return LaterLayers(layers=layers, model=case.model, grid=grid, rng=rng) if layers else None

    if not candidates.tokens[0].numel() and hides_first_position(case.subject.anatomy, first):
        candidates = open_first(candidates, readers, case.model, rng)
    blurred = noise_may_mask(case, first, candidates.null_cut)
    # Inputs that moved, or lost features to dropout, leave directions that are no tokens.
    counted = not blurred and case.model.parameters is None and not case.mismatch.dropout
    directions = readers[-1].space.inputs if counted else 0
    outcome = outcome_of_growth(growth(candidates), case.batch_size)
    if not blurred:
        return outcome
    return search_under_noise(case, first, outcome, growth, rng, clock)


def _assemble(
    case: AttackInput,
    effort: Effort,
    first: ObservedLayer,
    sets: Iterable[Candidates],
    readers: tuple[ObservedLayer, ...],
    rng: torch.Generator,
    clock: Clock,
) -> tuple[Candidates, Outcome]:
    """The candidates that explain the batch first, or else those that give most sentences, and what came of them."""
    closing = closing_token(case.subject)
    found: list[tuple[Candidates, SentenceResult]] = []
    for candidates in sets:
        assembly = SentenceSearch(
            candidates=candidates,
            first=first,
            readers=readers,
            model=case.model,
            block=case.subject.anatomy.blocks[0],
            batch_size=case.batch_size,
            lengths=lengths_of_sentences(case, candidates, closing),
            closing=closing,
            rounds=effort.rounds,
        )
        found.append((candidates, assembly.run(rng=rng, clock=clock)))
        if found[-1][1].complete or clock.spent():
            break
    candidates, assembled = max(found, key=lambda each: (each[1].complete, len(each[1].sentences)))
    return candidates, outcome_of_assembly(assembled, case.batch_size)


def _full(first: ObservedLayer) -> str:
    return (
        f"The gradients of the first attention fill all {first.space.features} dimensions, and their spectrum is not that of noise: the "
        "batch holds more distinct inputs than the model is wide, or several steps, an adaptive optimizer or dropout spread them."
    )


def _foreign(first: ObservedLayer) -> str:
    """What a clear space without any token suggests; empty where the space is not clear."""
    if 2 * first.space.rank > first.space.features:
        return ""
    return " Is this the model, with the weights that the client began with, and its tokenizer?"


def _blind_spot(case: AttackInput, first: ObservedLayer) -> str:
    hidden = hides_first_position(case.subject.anatomy, first)
    return "; only queries were shared, and they never show the first token of a record" if hidden else ""


def search_under_noise(
    case: AttackInput,
    first: ObservedLayer,
    outcome: Outcome,
    growth: Callable[[Candidates], SearchResult] | None,
    rng: torch.Generator,
    clock: Clock,
) -> Outcome:
    """This outcome of a search token by token, or that of a joint one where it leaves less unexplained of what stands out."""
    tested = int(outcome.statistics.get(TESTED, 0.0))
    found = explain_noisy(case, first, outcome.records, tested=tested, growth=growth, rng=rng, clock=clock)
    if case.prior is not None and (found is None or found.unexplained):
        pool = (*(() if found is None else found.sequences), *outcome.records)
        tipped = search_with_prior(case, first, pool, rng, clock)
        if tipped is not None:
            return replace(tipped, statistics={**outcome.statistics, **tipped.statistics})
    if found is None:
        return outcome
    note = "all that stands out of the noise is explained"
    if found.unexplained:
        note = (
            f"{found.unexplained} directions stand out of the noise that no proposed token explains: how the records go on "
            "cannot be told, and none is claimed to be complete"
        )
    how = f"{len(found.sequences)} sequences joined from {found.candidates} pairs of token and position"
    ended = status_of(bool(found.sequences), found.finished and outcome.status is not Status.BUDGET_SPENT)
    too_many = case.batch_size is not None and len(found.sequences) > case.batch_size
    if too_many:
        note += f"; {case.batch_size} records cannot hold so many, and only their tokens are proposed"
    records = (torch.cat(found.sequences).unique(),) if too_many else found.sequences
    sure = _confidence_of_bag(case, records[0]) if too_many else _confidence(case, found, rng)
    return Outcome(
        records=records,
        ordered=not too_many,
        confidence=sure,
        status=Status.UNDECIDED if found.unexplained and ended is Status.CONVERGED else ended,
        message=f"{how if found.candidates else outcome.message}; {note}",
        statistics={
            **outcome.statistics,
            TESTED: float(found.tested),
            "unexplained_directions": float(found.unexplained),
        },
    )


def _confidence(case: AttackInput, found: NoisySearchResult, rng: torch.Generator) -> tuple[Tensor, ...]:
    """What was explained to the end passed tests of a known rate of false alarms; else every token is weighed anew."""
    if not found.unexplained:
        return passed_every_test(found.sequences)
    std = measured_noise(case.readable, case.noise_std)
    places = gradient_likelihoods(case.readable, case.model, std, blocks=2)[:_PLACES]
    return token_confidence(found.sequences, places, case.model, rng)


def _confidence_of_bag(case: AttackInput, bag: Tensor) -> tuple[Tensor, ...]:
    """What the tables' gradients show is told at a known rate of false alarms; of other tokens nothing is claimed without a place."""
    told = EmbeddingEvidence.of(case.readable, case.subject.anatomy, positions=int(case.seq_len or 0))
    known = told is not None and bool(torch.isin(bag, told.tokens).all())
    return passed_every_test((bag,)) if known else ()


def search_when_no_token_passes(
    case: AttackInput, first: ObservedLayer, rng: torch.Generator, clock: Clock
) -> Reconstruction | None:
    """What a joint search tells where noise is such that no token passes on its own; None if nothing stands out."""
    if case.subject.anatomy.kind != "decoder" or not noise_may_mask(case, first, 0.0):
        return None
    nothing = Outcome(records=(), status=Status.NOTHING_FOUND, message="", statistics={})
    outcome = search_under_noise(case, first, nothing, None, rng, clock)
    return conclude(case, outcome, dict(outcome.statistics), rng, clock) if outcome.records else None
