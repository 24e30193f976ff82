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
from gradleak.mechanics.subspace.noise_level import Noise, noise_in
from gradleak.span.decoder.continuations import Grid
from gradleak.span.decoder.prefix_search import Grown
from gradleak.span.likelihood.energy_test import settle
from gradleak.span.likelihood.reading import preferences
from gradleak.span.noise.joint_search import match_jointly
from gradleak.span.noise.pair_search import noisy_candidates, with_ambiguous
from gradleak.span.reading.evidence import SpanCase
from gradleak.span.reading.readers import Candidates, NoiseOf, Reader

_BLOCKS = 2

Sequences = tuple[Int64[Tensor, " length"], ...]


def measured_noise(update: Mapping[str, Tensor], known: NoiseOf) -> NoiseOf:
    """The noise on each tensor: what is known to be there, or else what its own spectrum shows."""

    def std(name: str) -> Noise:
        told = known(name)
        return told if isinstance(told, Tensor) else told or noise_in(update[name])

    return std


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
    for shared in _readings(case) if preferred else ():
        pairs = _pairs(case, shared, first, std, rng)
        if pairs is None:
            continue
        count = sum(ids.numel() for ids in pairs.tokens)
        if growth is not None:
            again = growth(with_ambiguous(pairs, case.model, first.path) if pairs.positional else pairs)
            tested += again.tested
            found.append(explained(again.sequences, tested=tested, finished=again.finished, joined=count))
        if pairs.positional:
            grid = Grid.of(pairs, case.model.vocab_size, rng)
            matched = match_jointly(grid, preferred, case.model, records=case.batch_size or 1, clock=clock)
            tested += matched.tested
            found.append(explained(matched.sequences, tested=tested, finished=matched.finished, joined=count))
        if any(one is not None and not one.unexplained for one in found):
            break
    # The first of those that leave least: what was grown one by one passed tests of its own.
    return min((one for one in found if one is not None), key=lambda one: one.unexplained, default=None)


def _readings(case: SpanCase) -> list[Mapping[str, Tensor]]:
    """The update, and it without the gradient of the position table, which a token that stands twice misleads."""
    table = case.subject.anatomy.position_embedding
    without = {name: tensor for name, tensor in case.readable.items() if name != table}
    return [case.readable, without] if table in case.readable else [case.readable]


def _pairs(
    case: SpanCase, shared: Mapping[str, Tensor], first: Reader, std: NoiseOf, rng: torch.Generator
) -> Candidates | None:
    if case.batch_size is None or case.seq_len is None:
        return None
    pairs = noisy_candidates(shared, case.model, first, noise_std=std, positions=case.seq_len, rng=rng)
    return pairs if pairs is not None and pairs.tokens[0].numel() else None
