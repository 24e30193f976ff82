"""Span: tokens whose layer-1 input lies in the column space of the attention gradients, put in order by the next layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import torch

from gradleak.core.attack import Attack, Clock, Reconstruction, Status
from gradleak.core.batch import Modality
from gradleak.core.errors import NotApplicableError, SpecError
from gradleak.core.knowledge import View
from gradleak.core.update import Update
from gradleak.span.beyond.bag import (
    bag_of_embeddings,
    beyond,
    covers_half,
    missing_inputs,
    mostly_unexplained,
    tokens_only,
)
from gradleak.span.candidates.membership import candidates_of
from gradleak.span.decoder.continuations import Attended, Grid, Replayed, open_first
from gradleak.span.decoder.prefix_search import Grown, grow
from gradleak.span.encoder.sentence_search import Assembled, Assembly
from gradleak.span.language.prior import check_prior
from gradleak.span.noise.encoder_candidates import candidate_sets, may_hide
from gradleak.span.outcome.outcome import Outcome, conclude, outcome_of_assembly, outcome_of_growth, statistics_of
from gradleak.span.reading.evidence import SpanCase, closing_token, lengths_of_sentences
from gradleak.span.reading.pruned import framed, too_few
from gradleak.span.reading.readers import Candidates, Reader, context_readers, first_reader, hides_first
from gradleak.span.strategy import drowned, under_noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Span(Attack):
    """Exact recovery from the low rank of linear-layer gradients, without labels or lengths; a language prior is optional.

    The gradient of a linear layer is G = Xᵀ D, so with fewer tokens than the width its column space holds the inputs
    x_i and almost surely no other vector of the vocabulary. Tokens are tested at the first attention's input; sequences
    are tested behind it, where the input depends on the other tokens: prefix by prefix in a causal model, as whole
    sentences otherwise. The recovered batch is certified by recomputing the update.

    Args:
        beam: most prefixes of one length that are kept, per record of the batch.
        rounds: passes of the sentence search over all positions before it gives up (bidirectional models).
        prior: what is believed of text beforehand, for decoders under noise that leaves the update undecided: none for nothing,
            ``uniform`` for the same search without preference, ``public`` (counts of the sentences that gradleak ships), a ``.txt`` file
            of public text to count, or a local folder with a Hugging Face causal language model of the same tokens.

    Guarantees:
        EXACT is reported only if the recomputed update equals the released one up to rounding.
        Where fewer records than the batch holds are found, and they cover less than half of the tokens that the rows of the
        embedding's gradient tell exactly, that bag of tokens is returned instead.
        Not visible, whatever the effort: how often a record is repeated; a record that is a prefix of another one; the
        last token of each record under a causal language-model loss.
        With a prior: where the update alone decides, it changes nothing. Else both logarithms are added in nats, without a weight, the status
        stays UNDECIDED unless the certificate is exact, and the statistics hold what update and prior say alone.
        Of AdamW one step on float32 weights is undone, as far as small gradients allow; what drowns is not proposed.

    Source: Petrov et al., arXiv 2405.15586 (DAGER).
    Deviations: the rank cut and the acceptance thresholds are derived from number format, known noise and the
        vocabulary's own null law; the second test reads the attention's output and the feed-forward input of block 1.
    """

    summary: ClassVar[str] = "Tokens in the column space of the attention gradients, ordered by the next layer; exact."
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    needs: ClassVar[frozenset[str]] = frozenset({"subject"})
    uses: ClassVar[frozenset[str]] = frozenset({"trainer", "stages", "batch_size", "seq_len", "mask", "labels"})

    beam: int = 64
    rounds: int = 4
    prior: str | None = None

    def __post_init__(self) -> None:
        if self.prior is not None:
            wrong = check_prior(self.prior)
            if wrong:
                raise SpecError(f"span: {wrong}")

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        case = SpanCase.of(update, view, self.prior)
        evidence = {"noise_std": case.noise_std, "summands": case.summands, "departure": case.departure}
        first = framed(case, first_reader(case.readable, case.model, **evidence))
        if first.space.guessed and case.silent:
            found = beyond(case, _full(first), rng, clock)
            if found is not None:
                return found
        try:
            found = self._search(case, first, evidence, rng, clock)
        except NotApplicableError as reason:
            found = beyond(case, str(reason), rng, clock) or drowned(case, first, rng, clock)
            if found is None:
                raise
            return found
        if found.ordered and len(found.records) == case.batch_size and found.status is not Status.UNDECIDED:
            return found
        bag = bag_of_embeddings(case, found.message)
        # What growth leaves out is no reason to doubt what it found; what noise leaves unexplained is.
        doubted = found.status is Status.UNDECIDED and not found.statistics.get("missed_directions")
        if bag is None or (not doubted and covers_half(found.records, bag.records[0])):
            return found
        if found.status is Status.BUDGET_SPENT:
            return replace(bag, status=Status.BUDGET_SPENT)
        return beyond(case, found.message, rng, clock) or bag

    def _search(
        self, case: SpanCase, first: Reader, evidence: Mapping[str, Any], rng: torch.Generator, clock: Clock
    ) -> Reconstruction:
        decoder = case.subject.anatomy.kind == "decoder"
        sets = iter((candidates_of(case, first, rng),)) if decoder else candidate_sets(case, first, rng)
        candidates = next(sets)
        if not candidates.length():
            return drowned(case, first, rng, clock) or Reconstruction(
                status=Status.NOTHING_FOUND,
                message=f"No token of the vocabulary lies in the span of rank {first.space.rank} of {first.space.features}."
                + first.hint,
                adapted=case.adapted(),
                statistics=statistics_of(first, (), candidates),
            )
        # A space that the inputs merely lie in counts none of them.
        count = 0 if first.left_out else first.space.inputs
        readers = context_readers(case.readable, case.model, expected_rank=count, **evidence)
        if not readers:
            return tokens_only(
                case,
                candidates,
                statistics_of(first, (), candidates),
                "no layer behind the first attention tells their order"
                + _blind_spot(case, first)
                + too_few(case, next(iter(case.subject.anatomy.maps_behind()))),
            )
        if decoder:
            outcome = self._grow(case, first, candidates, readers, rng, clock)
        else:
            candidates, outcome = self._assemble(case, first, chain((candidates,), sets), readers, rng, clock)
        statistics = statistics_of(first, readers, candidates) | dict(outcome.statistics)
        spent = outcome.status is Status.BUDGET_SPENT
        if not outcome.records and (not spent or not decoder):
            why = "the budget ended before any" if spent else "no"
            why += " sequence of them passes behind the first attention" + _blind_spot(case, first)
            bag = tokens_only(case, candidates, statistics, why)
            return replace(bag, status=Status.BUDGET_SPENT) if spent else bag
        if not spent:
            if mostly_unexplained(case, outcome.statistics.get("missed_directions", 0.0), readers[-1]):
                why = "most directions behind the first attention belong to none of the sequences that pass"
                return tokens_only(case, candidates, statistics, why)
            if missing := missing_inputs(outcome.records, first, candidates):
                why = f"the sequences that pass behind the first attention lack {missing} inputs"
                return tokens_only(case, candidates, statistics, why)
        return conclude(case, outcome, statistics, rng, clock)

    def _grow(
        self,
        case: SpanCase,
        first: Reader,
        candidates: Candidates,
        readers: tuple[Reader, ...],
        rng: torch.Generator,
        clock: Clock,
    ) -> Outcome:
        beam = self.beam * (case.batch_size or 16)

        def growth(candidates: Candidates) -> Grown:
            grid = Grid.of(candidates, case.model.vocab_size, rng)
            attended = Attended.of(grid, readers, case.model, rng)
            continuations = attended or Replayed(grid=grid, readers=readers, model=case.model)
            return grow(
                grid,
                continuations,
                readers[-1],
                case.model,
                beam=beam,
                at_most=case.batch_size,
                clock=clock,
                directions=directions,
                positional=candidates.positional,
            )

        if not candidates.tokens[0].numel() and hides_first(case.subject.anatomy, first):
            candidates = open_first(candidates, readers, case.model, rng)
        blurred = may_hide(case, first, candidates.null_cut)
        # Inputs that moved, or lost features to dropout, leave directions that are no tokens.
        counted = not blurred and case.model.parameters is None and not case.departure.dropout
        directions = readers[-1].space.inputs if counted else 0
        outcome = outcome_of_growth(growth(candidates), case.batch_size)
        if not blurred:
            return outcome
        return under_noise(case, first, outcome, growth, rng, clock)

    def _assemble(
        self,
        case: SpanCase,
        first: Reader,
        sets: Iterable[Candidates],
        readers: tuple[Reader, ...],
        rng: torch.Generator,
        clock: Clock,
    ) -> tuple[Candidates, Outcome]:
        """The candidates that explain the batch first, or else those that give most sentences, and what came of them."""
        closing = closing_token(case.subject)
        found: list[tuple[Candidates, Assembled]] = []
        for candidates in sets:
            assembly = Assembly(
                candidates=candidates,
                first=first,
                readers=readers,
                model=case.model,
                block=case.subject.anatomy.blocks[0],
                batch_size=case.batch_size,
                lengths=lengths_of_sentences(case, candidates, closing),
                closing=closing,
                rounds=self.rounds,
            )
            found.append((candidates, assembly.run(rng=rng, clock=clock)))
            if found[-1][1].complete or clock.spent():
                break
        candidates, assembled = max(found, key=lambda each: (each[1].complete, len(each[1].sentences)))
        return candidates, outcome_of_assembly(assembled, case.batch_size)


def _full(first: Reader) -> str:
    return (
        f"The gradients of the first attention fill all {first.space.features} dimensions, and no noise does it: the batch holds more "
        "distinct inputs than the model is wide."
    )


def _blind_spot(case: SpanCase, first: Reader) -> str:
    hidden = hides_first(case.subject.anatomy, first)
    return "; only queries were shared, and they never show the first token of a record" if hidden else ""
