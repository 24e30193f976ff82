"""Why: where noise blurs the spaces, tokens, places and sequences are sought jointly: first the fewest (token, position) pairs that
explain the first attention's gradient, then the records that hold them, and every token has to answer for energy of its own.
Must not know encoders, labels or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.mechanics.probe import linear_inputs
from gradleak.mechanics.span_candidates import nearest_pairs
from gradleak.mechanics.span_case import SpanCase
from gradleak.mechanics.span_context import Grid
from gradleak.mechanics.span_growth import Grown
from gradleak.mechanics.span_matching import match_jointly
from gradleak.mechanics.span_noise import noise_in
from gradleak.mechanics.span_preference import Preference, preferences
from gradleak.mechanics.span_readers import FALSE_ALARM_RATE, Candidates, Model, NoiseOf, Reader
from gradleak.mechanics.span_settled import settle
from gradleak.mechanics.span_sparse import sparse_members

_SHORTLIST = 6
"""Candidate pairs per dimension that the sparse search starts from: it held every true pair of 16 x 16 at noise 0.1, and 182 of
185 at 0.3 (one batch); twice as many find no more and cost twice as much."""
_BLOCKS = 2

Sequences = tuple[Int64[Tensor, " length"], ...]


def measured_noise(update: Mapping[str, Tensor], known: NoiseOf) -> NoiseOf:
    """The noise on each tensor: what is known to be there, or else what its own spectrum shows."""

    def std(name: str) -> float:
        return known(name) or noise_in(update[name])

    return std


def noisy_candidates(
    update: Mapping[str, Tensor],
    model: Model,
    first: Reader,
    *,
    noise_std: NoiseOf,
    positions: int,
    rng: torch.Generator,
) -> Candidates | None:
    """Tokens at positions that together explain the first attention's gradient; None if it was not shared."""
    reading = Preference.of(update, model.subject.anatomy.blocks[0].attention_inputs, noise_std)
    if reading is None:
        return None
    tokens, places = nearest_pairs(
        first,
        model,
        reading.root,
        tokens=torch.arange(model.vocab_size),
        positions=positions,
        count=_SHORTLIST * first.space.features,
        rng=rng,
    )
    inputs = torch.empty(len(tokens), first.space.features)
    for place in places.unique().tolist():
        here = (places == place).nonzero().flatten()
        row = tokens[here].unsqueeze(1).expand(-1, place + 1)
        inputs[here] = linear_inputs(model.subject, (reading.path,), row, parameters=model.parameters)[reading.path][
            :, place
        ]
    rate = FALSE_ALARM_RATE / (model.vocab_size * (int(places.max()) + 1))
    members = sparse_members(inputs, reading.gradient, false_alarms=rate)
    positional = bool(places.any())
    found = [tokens[members[places[members] == p]] for p in range(positions if positional else 1)]
    found = found if positional else found * positions
    return Candidates(
        tokens=tuple(found),
        residuals=tuple(torch.zeros(len(ids)) for ids in found),
        nearest=torch.stack([tokens[places == (p if positional else 0)][0] for p in range(positions)]),
        null_cut=1.0,
        positional=positional,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Explained:
    """Sequences, and how much of what stands out of the noise they leave.

    Attributes:
        unexplained: directions above the noise edge that no proposed token explains.
        candidates: pairs of token and position that the sequences were joined from; 0 if they were grown one by one.
    """

    sequences: Sequences
    unexplained: int
    tested: int
    finished: bool
    candidates: int = 0


def explain_noisy(
    case: SpanCase,
    first: Reader,
    grown: Sequences,
    *,
    tested: int,
    growth: Callable[[Candidates], Grown] | None,
    rng: torch.Generator,
    clock: Clock,
) -> Explained | None:
    """Sequences that were grown one by one or, where they leave something unexplained, those of a joint search that leave least.

    Args:
        tested: tokens that the growth looked at.
        growth: grows sequences from other candidates; None if no layer tells members of its space from others.

    Returns:
        None where there are too many tokens to tell, or no layer behind the first attention was shared.
    """
    std = measured_noise(case.readable, case.noise_std)
    preferred = preferences(case.readable, case.model, std, blocks=_BLOCKS)

    def explained(sequences: Sequences, *, tested: int, finished: bool, joined: int) -> Explained | None:
        settled = settle(sequences, preferred, case.model, tests=max(1, tested)) if sequences else None
        if settled is None:
            return None
        # With nothing left to explain, tokens behind the last one that holds energy of its own are no part of a record.
        kept = settled.trimmed(sequences) if joined and not settled.unexplained else sequences
        return Explained(
            sequences=kept, unexplained=settled.unexplained, tested=tested, finished=finished, candidates=joined
        )

    found = [explained(grown, tested=tested, finished=True, joined=0)]
    if found[0] is not None and not found[0].unexplained:
        return found[0]
    pairs = _pairs(case, first, std, rng)
    if pairs is not None and preferred:
        count = sum(ids.numel() for ids in pairs.tokens)
        if growth is not None:
            again = growth(pairs)
            tested += again.tested
            found.append(explained(again.sequences, tested=tested, finished=again.finished, joined=count))
        if pairs.positional:
            grid = Grid.of(pairs, case.model.vocab_size, rng)
            matched = match_jointly(grid, preferred, case.model, records=case.batch_size or 1, clock=clock)
            tested += matched.tested
            found.append(explained(matched.sequences, tested=tested, finished=matched.finished, joined=count))
    # The first of those that leave least: what was grown one by one passed tests of its own.
    return min((one for one in found if one is not None), key=lambda one: one.unexplained, default=None)


def _pairs(case: SpanCase, first: Reader, std: NoiseOf, rng: torch.Generator) -> Candidates | None:
    if case.batch_size is None or case.seq_len is None:
        return None
    pairs = noisy_candidates(case.readable, case.model, first, noise_std=std, positions=case.seq_len, rng=rng)
    return pairs if pairs is not None and pairs.tokens[0].numel() else None
