"""Why: noise hides directions of the update, so a decoder's search token by token may miss what a joint one still sees. Says when
the second is worth asking, and which outcome stands. Must not know how either searches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gradleak.core.attack import Clock, Reconstruction, Status
from gradleak.span.decoder.prefix_search import Grown
from gradleak.span.likelihood.confidence import token_confidence
from gradleak.span.likelihood.reading import preferences
from gradleak.span.noise.decoder_search import Explained, explain_noisy, measured_noise
from gradleak.span.noise.embedding_evidence import Tabled
from gradleak.span.noise.encoder_candidates import may_hide
from gradleak.span.outcome.outcome import Outcome, conclude, passed_every_test, status_of
from gradleak.span.reading.evidence import SpanCase
from gradleak.span.reading.readers import Candidates, Reader
from gradleak.span.with_prior.attribution import weighed

_PLACES = 2
"""Places that are asked how probable a token is: the first behind the first attention, in the order of their cost."""


def under_noise(
    case: SpanCase,
    first: Reader,
    outcome: Outcome,
    growth: Callable[[Candidates], Grown] | None,
    rng: torch.Generator,
    clock: Clock,
) -> Outcome:
    """This outcome of a search token by token, or that of a joint one where it leaves less unexplained of what stands out."""
    tested = int(outcome.statistics.get("tested", 0.0))
    found = explain_noisy(case, first, outcome.records, tested=tested, growth=growth, rng=rng, clock=clock)
    if case.prior is not None and (found is None or found.unexplained):
        pool = (*(() if found is None else found.sequences), *outcome.records)
        tipped = weighed(case, first, pool, rng, clock)
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
            "tested": float(found.tested),
            "unexplained_directions": float(found.unexplained),
        },
    )


def _confidence(case: SpanCase, found: Explained, rng: torch.Generator) -> tuple[Tensor, ...]:
    """What was explained to the end passed tests of a known rate of false alarms; else every token is weighed anew."""
    if not found.unexplained:
        return passed_every_test(found.sequences)
    std = measured_noise(case.readable, case.noise_std)
    places = preferences(case.readable, case.model, std, blocks=2)[:_PLACES]
    return token_confidence(found.sequences, places, case.model, rng)


def _confidence_of_bag(case: SpanCase, bag: Tensor) -> tuple[Tensor, ...]:
    """What the tables' gradients show is told at a known rate of false alarms; of other tokens nothing is claimed without a place."""
    told = Tabled.of(case.readable, case.subject.anatomy, positions=int(case.seq_len or 0))
    known = told is not None and bool(torch.isin(bag, told.tokens).all())
    return passed_every_test((bag,)) if known else ()


def drowned(case: SpanCase, first: Reader, rng: torch.Generator, clock: Clock) -> Reconstruction | None:
    """What a joint search tells where noise is such that no token passes on its own; None if nothing stands out."""
    if case.subject.anatomy.kind != "decoder" or not may_hide(case, first, 0.0):
        return None
    nothing = Outcome(records=(), status=Status.NOTHING_FOUND, message="", statistics={})
    outcome = under_noise(case, first, nothing, None, rng, clock)
    return conclude(case, outcome, dict(outcome.statistics), rng, clock) if outcome.records else None
