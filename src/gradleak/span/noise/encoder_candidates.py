"""Why: noise hides members of a bidirectional model's first attention from the test of single pairs, and no sentence is found
without all of its tokens. Says when some may be hidden, and where else they are sought. Must not know how sentences are put together.

All pairs (token, position) are sought at once, as the fewest that explain the gradient (``span/noise/pair_search.py``). With positions that add up
they are not unique: E_v + P_p of four pairs may depend on each other, and where words repeat, the fewest leave out true ones. So every
pair that lies in the space of those found is a candidate. That space is known without noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from gradleak.core.errors import NotApplicableError
from gradleak.span.candidates.membership import find_candidates
from gradleak.span.candidates.types import Candidates
from gradleak.span.candidates.window import candidates_of
from gradleak.span.likelihood.gradient_likelihood import GradientLikelihood
from gradleak.span.noise.decoder_search import measured_noise
from gradleak.span.noise.pair_search import by_position, noisy_candidates, unit_inputs, with_ambiguous
from gradleak.span.noise.sparse_selection import stand_out
from gradleak.span.reading.evidence import AttackInput, closing_token
from gradleak.span.reading.observed_layer import ObservedLayer

_BLURRED = 30.0
"""Ratio of the null's cut to a member's residual below which noise may have hidden directions altogether."""
_NEAR_PER_POSITION = 0.25
"""Non-members let through at each position where members are known to be missing; set by hand, 1 found the same."""
_STRONGEST = 4
"""Pairs that are added, one after the other, where they hold more energy than one in all pairs of these tokens would by chance."""


def noise_may_mask(case: AttackInput, first: ObservedLayer, null_cut: float) -> bool:
    """Whether noise may have hidden directions of tokens, and a joint search can look for them.

    Inputs that drifted over local steps or lost features to dropout leave directions that are no tokens, and an undone AdamW step noise
    of many sizes: none is sought jointly. Neither is what fills more than half of the dimensions.
    """
    return case.still and 2 * first.space.rank <= first.space.features and null_cut <= _BLURRED * first.space.blur


def candidate_sets(case: AttackInput, first: ObservedLayer, rng: torch.Generator) -> Iterator[Candidates]:
    """Candidates of a bidirectional model, each set made when it is asked for: those that pass alone, unless some must be
    missing; under noise those that all pairs together show; last, those nearest to the space, too.

    Raises:
        NotApplicableError: as ``candidates_of``, where nothing can be sought jointly.
    """
    try:
        alone = candidates_of(case, first, rng)
    except NotApplicableError:
        joint = _joint(case, first, rng) if noise_may_mask(case, first, 0.0) else None
        if joint is None:
            raise
        yield joint
        return
    if not alone.positional or case.seq_len is None:
        yield alone
        return
    pairs, inputs = alone.count(), first.space.inputs
    if pairs == inputs:
        yield alone
    joint = _joint(case, first, rng) if noise_may_mask(case, first, alone.null_cut) else None
    if joint is not None:
        yield joint
    if pairs > inputs:
        yield alone
    if pairs < inputs:
        places = len(alone.tokens)
        yield find_candidates(first, case.model, positions=places, rng=rng, false_per_position=_NEAR_PER_POSITION)


def _joint(case: AttackInput, first: ObservedLayer, rng: torch.Generator) -> Candidates | None:
    """Pairs in the space of the fewest that explain the gradient, and the closing token everywhere; None if positions do not enter.

    The position table is not read: where words repeat it misleads about places.
    """
    anatomy = case.subject.anatomy
    if case.batch_size is None or case.seq_len is None:
        return None
    std = measured_noise(case.readable, case.noise_std)
    shared = {name: tensor for name, tensor in case.readable.items() if name != anatomy.position_embedding}
    fewest = noisy_candidates(shared, case.model, first, noise_std=std, positions=case.seq_len, rng=rng)
    reading = GradientLikelihood.of(shared, anatomy.first_maps(), std)
    if fewest is None or reading is None or not fewest.positional or not fewest.tokens[0].numel():
        return None
    tokens, places, members = _every_pair(fewest)
    inputs = unit_inputs(tokens, places, first.path, case.model)
    for _ in range(_STRONGEST):
        more = stand_out(inputs, inputs[members], reading.gradient, false_alarms=1 / len(inputs))
        if not len(more):
            break
        members = torch.cat((members, more[:1]))
    residuals = inputs.new_zeros(len(members))
    found = by_position(tokens[members], places[members], residuals, positions=case.seq_len, positional=True)
    return _with_closing(with_ambiguous(found, case.model, first.path), closing_token(case.subject))


def _with_closing(found: Candidates, closing: int | None) -> Candidates:
    if closing is None:
        return found
    missing = [not bool((ids == closing).any()) for ids in found.tokens]
    return replace(
        found,
        tokens=tuple(
            torch.cat((ids, ids.new_tensor([closing]))) if add else ids
            for ids, add in zip(found.tokens, missing, strict=True)
        ),
        residuals=tuple(
            torch.cat((each, each.new_zeros(1))) if add else each
            for each, add in zip(found.residuals, missing, strict=True)
        ),
    )


def _every_pair(fewest: Candidates) -> tuple[Tensor, Tensor, Tensor]:
    """All tokens found at all positions: tokens, positions, and the numbers of the pairs that were found."""
    bag, count = fewest.bag(), len(fewest.tokens)
    places = torch.arange(count, device=bag.device).repeat_interleave(len(bag))
    found = [torch.searchsorted(bag, ids) + place * len(bag) for place, ids in enumerate(fewest.tokens)]
    return bag.repeat(count), places, torch.cat(found)
