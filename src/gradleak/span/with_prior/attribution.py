"""Why: where noise leaves an update undecided, a language model may tip the scales, and then it must be said what it did: beside the
records of both stand those of the update alone and of the prior alone, found by the same search. Must not know how text is scored by the judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gradleak.core.attack import Clock, Status
from gradleak.span.candidates.membership import nearest_pairs
from gradleak.span.language.language_model import Uniform
from gradleak.span.likelihood.confidence import token_confidence
from gradleak.span.likelihood.gradient_likelihood import GradientLikelihood, gradient_likelihoods
from gradleak.span.likelihood.marginal import Evidence, Signal
from gradleak.span.noise.decoder_search import measured_noise
from gradleak.span.noise.embedding_evidence import EmbeddingEvidence
from gradleak.span.outcome.outcome import Outcome
from gradleak.span.reading.evidence import AttackInput
from gradleak.span.reading.observed_layer import ObservedLayer
from gradleak.span.statistics import PROPOSED_TOKENS, SAID_BY_PRIOR_ALONE, TOKENS_DUE_TO_PRIOR
from gradleak.span.with_prior.posterior import Ids, Problem, Solution, maximize_posterior

_BLOCKS = 2
_PLACES = 2
"""Places that are asked how probable a token is, as without a prior."""
_SHORTLIST = 6
"""Pairs of token and position per dimension that the update leaves open, as in ``span/noise/pair_search.py``; but of one position at most:"""
_EACH = 96
"""Set by hand, not swept: keeps queries, keys and values of all of them within memory in wide models."""

Records = Sequence[Int64[Tensor, " length"]]


def search_with_prior(
    case: AttackInput, first: ObservedLayer, pool: Records, rng: torch.Generator, clock: Clock
) -> Outcome | None:
    """Records that update and ``case.prior`` together make maximize_posterior, with what each alone says.

    Args:
        pool: records that a search without a prior came upon, to start from.

    Returns:
        None without a prior, where batch size or length is not known, where the batch may hold as many tokens as the model is wide,
        or where nothing stands out of the noise: then a prior would only invent.
    """
    if case.prior is None or case.batch_size is None or case.seq_len is None:
        return None
    std = measured_noise(case.readable, case.noise_std)
    reading = GradientLikelihood.of(case.readable, case.subject.anatomy.first_maps(), std)
    behind = gradient_likelihoods(case.readable, case.model, std, blocks=_BLOCKS)
    if reading is None or not behind or case.batch_size * case.seq_len >= first.space.features:
        return None
    evidence = Evidence(signals=tuple(map(Signal.of, (reading, *behind))), model=case.model)
    if not any(signal.directions.numel() for signal in evidence.signals):
        return None
    told = EmbeddingEvidence.of(case.readable, case.subject.anatomy, positions=case.seq_len)
    problem = Problem(
        evidence=evidence,
        prior=case.prior,
        options=_options(case, first, reading, told, pool, rng),
        closed=told is not None,
        records=case.batch_size,
        lengths=_lengths(case),
    )
    uniform = Uniform(vocab_size=case.model.vocab_size)
    alone = _answer(replace(problem, prior=uniform), pool, clock)
    if case.prior == uniform:
        both, guess = alone, Solution(records=(), log_evidence=0.0, log_prior=0.0, finished=True)
    else:
        both = _answer(problem, alone.records, clock)
        guess = maximize_posterior(problem.withheld(case.seq_len), clock)
    return _outcome(case, both, alone, guess, token_confidence(both.records, behind[:_PLACES], case.model, rng))


def _lengths(case: AttackInput) -> tuple[int, ...] | None:
    mask = case.view.get("mask")
    return None if mask is None else tuple(mask.sum(dim=1).tolist())


def _options(
    case: AttackInput,
    first: ObservedLayer,
    reading: GradientLikelihood,
    told: EmbeddingEvidence | None,
    pool: Records,
    rng: torch.Generator,
) -> tuple[Int64[Tensor, " tokens"], ...]:
    """Per position what the tables show, or else the pairs that the first attention prefers and whatever was proposed before."""
    positions = int(case.seq_len or 0)
    if told is not None:
        return (told.tokens,) * positions
    tokens, places = nearest_pairs(
        first,
        case.model,
        reading.root,
        tokens=torch.arange(case.model.vocab_size, device=reading.root.device),
        positions=positions,
        count=min(_SHORTLIST * first.space.features, _EACH * positions),
        rng=rng,
    )
    proposed = torch.cat([*pool, tokens[:0]])
    here = [tokens[places == p] if bool(places.any()) else tokens for p in range(positions)]
    return tuple(torch.cat((each, proposed)).unique() for each in here)


def _answer(problem: Problem, pool: Records, clock: Clock) -> Solution:
    """The likelier of two ascents: from the records that explain most, and from nothing."""
    start = _chosen(problem, [tuple(ids.tolist()) for ids in pool])
    found = [maximize_posterior(problem, clock, start=start)] if start else []
    if not clock.spent() or not found:
        found.append(maximize_posterior(problem, clock))
    return max(found, key=lambda one: one.log_evidence + one.log_prior)


def _chosen(problem: Problem, pool: Sequence[Ids]) -> list[Ids]:
    """As many as there are records; each in turn adds most to those before it."""
    assert problem.evidence is not None
    left, chosen = list(dict.fromkeys(pool)), list[Ids]()
    rows = {ids: [seen[0] for seen in problem.evidence.rows(problem.tensor([ids]))] for ids in left}
    cost = {ids: float(problem.prior.each(problem.tensor([ids])).sum()) for ids in left}
    while left and len(chosen) < problem.records:
        given = problem.evidence.given([rows[ids] for ids in chosen])
        value = {
            ids: cost[ids]
            + sum(float(place.score(seen.unsqueeze(0))) for place, seen in zip(given, rows[ids], strict=True))
            for ids in left
        }
        chosen.append(max(left, key=value.__getitem__))
        left.remove(chosen[-1])
    return chosen


def _outcome(case: AttackInput, both: Solution, alone: Solution, guess: Solution, sure: tuple[Tensor, ...]) -> Outcome:
    count = sum(len(ids) for ids in both.records)
    owed, guessed = count - agreeing(both.records, alone.records), agreeing(both.records, guess.records)
    finished = both.finished and alone.finished and guess.finished
    return Outcome(
        records=both.records,
        status=Status.UNDECIDED if finished else Status.BUDGET_SPENT,
        message=f"{len(both.records)} records of {count} tokens are likeliest for the update and a language prior together; {owed} of "
        f"the tokens are owed to the prior (the update alone says others), {guessed} are what the prior alone would say. How probable "
        "each token is, is told by the update alone, and not calibrated for what a prior proposes",
        statistics={
            PROPOSED_TOKENS: float(count),
            TOKENS_DUE_TO_PRIOR: float(owed),
            SAID_BY_PRIOR_ALONE: float(guessed),
            "log_evidence": both.log_evidence,
            "log_prior": both.log_prior,
            "log_evidence_without_prior": alone.log_evidence,
            "log_prior_without_evidence": guess.log_prior,
        },
        confidence=sure,
    )


def agreeing(records: Records, others: Records) -> int:
    """Tokens of ``records`` that stand in the same place of ``others``, matched one-to-one."""
    table = [[_same(ids, other) for other in others] for ids in records]
    if not table or not table[0]:
        return 0
    left, right = linear_sum_assignment(table, maximize=True)
    return sum(table[i][j] for i, j in zip(left, right, strict=True))


def _same(one: Tensor, other: Tensor) -> int:
    length = min(len(one), len(other))
    return int((one[:length] == other[:length]).sum())
