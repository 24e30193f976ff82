"""Where noise blurs the spaces, tokens, places and sequences are sought jointly: first the fewest (token, position) pairs that
explain the first attention's gradient, then the records that hold them, and every token has to answer for energy of its own.
Must not know encoders, labels or losses.

Where it is known which token stands at which position, but not in which record, sequences grow by a matching: each
token of the next position continues one prefix, and a prefix that none continues has ended. Must not know encoders or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.subspace.noise_level import Noise, noise_in
from gradleak.span.candidates.types import Candidates
from gradleak.span.decoder.continuations import DECOYS, Grid
from gradleak.span.decoder.prefix_search import SearchResult
from gradleak.span.likelihood.energy_test import energy_test
from gradleak.span.likelihood.gradient_likelihood import GradientLikelihood, gradient_likelihoods
from gradleak.span.noise.pair_search import noisy_candidates, with_ambiguous
from gradleak.span.noise.record_search import CachedLayers, JointResult, weigh_continuations
from gradleak.span.reading.evidence import AttackInput
from gradleak.span.reading.observed_layer import FALSE_ALARM_RATE, NoiseOf, ObservedLayer

_BLOCKS = 2

Sequences = tuple[Int64[Tensor, " length"], ...]


def measured_noise(update: Mapping[str, Tensor], known: NoiseOf) -> NoiseOf:
    """The noise on each tensor: what is known to be there, or else what its own spectrum shows."""

    def std(name: str) -> Noise:
        told = known(name)
        return told if isinstance(told, Tensor) else told or noise_in(update[name])

    return std


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisySearchResult:
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
    case: AttackInput,
    first: ObservedLayer,
    grown: Sequences,
    *,
    tested: int,
    growth: Callable[[Candidates], SearchResult] | None,
    rng: torch.Generator,
    clock: Clock,
) -> NoisySearchResult | None:
    """Sequences that were grown one by one or, where they leave something unexplained, those of a joint search that leave least.

    Args:
        tested: tokens that the growth looked at.
        growth: grows sequences from other candidates; None if no layer tells members of its space from others.

    Returns:
        None where there are too many tokens to tell, or no layer behind the first attention was shared.
    """
    std = measured_noise(case.readable, case.noise_std)
    preferred = gradient_likelihoods(case.readable, case.model, std, blocks=_BLOCKS)

    def explained(sequences: Sequences, *, tested: int, finished: bool, joined: int) -> NoisySearchResult | None:
        settled = energy_test(sequences, preferred, case.model, tests=max(1, tested)) if sequences else None
        if settled is None:
            return None
        # With nothing left to explain, tokens behind the last one that holds energy of its own are no part of a record.
        kept = settled.trimmed(sequences) if joined and not settled.unexplained else sequences
        return NoisySearchResult(
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
            matched = match_records(grid, preferred, case.model, records=case.batch_size or 1, clock=clock)
            tested += matched.tested
            found.append(explained(matched.sequences, tested=tested, finished=matched.finished, joined=count))
        if any(one is not None and not one.unexplained for one in found):
            break
    # The first of those that leave least: what was grown one by one passed tests of its own.
    return min((one for one in found if one is not None), key=lambda one: one.unexplained, default=None)


def _readings(case: AttackInput) -> list[Mapping[str, Tensor]]:
    """The update, and it without the gradient of the position table, which a token that stands twice misleads."""
    table = case.subject.anatomy.position_embedding
    without = {name: tensor for name, tensor in case.readable.items() if name != table}
    return [case.readable, without] if table in case.readable else [case.readable]


def _pairs(
    case: AttackInput, shared: Mapping[str, Tensor], first: ObservedLayer, std: NoiseOf, rng: torch.Generator
) -> Candidates | None:
    if case.batch_size is None or case.seq_len is None:
        return None
    pairs = noisy_candidates(shared, case.model, first, noise_std=std, positions=case.seq_len, rng=rng)
    return pairs if pairs is not None and pairs.tokens[0].numel() else None


_NEVER = -1e6


def match_records(
    grid: Grid, preferred: Sequence[GradientLikelihood], model: Model, *, records: int, clock: Clock
) -> JointResult:
    """One position at a time, for all records at once.

    Args:
        grid: candidates per position, each of which some record holds there.
        preferred: layers in the order of the model.
        records: of the batch; a prefix that all of them share is split when their tokens part.
    """
    near = CachedLayers.of(grid, preferred, model)
    device = grid.tokens.device
    rows = torch.arange(grid.counts[0], device=device).unsqueeze(1)
    certain = torch.zeros(len(rows), 1, dtype=torch.float64, device=device)
    ended: list[tuple[Tensor, Tensor]] = []
    tested = grid.counts[0]
    for p in range(1, grid.length):
        if not grid.counts[p]:
            break
        clock.progress(p / grid.length, f"position {p + 1} of {grid.length}, {len(rows)} prefixes")
        found = weigh_continuations(grid, rows, near, preferred, model, clock=clock, strangers=DECOYS)
        if found is None:
            break
        found = found.clamp(min=_NEVER)
        tested += found.numel()
        parents, children = (side.to(device) for side in _matched(found.cpu(), records=records - len(ended)))
        over = torch.ones(len(rows), dtype=torch.bool, device=device).index_fill(0, parents, False)
        ended += zip(grid.ids(rows[over]), certain[over], strict=True)
        rows = torch.cat((rows[parents], children.unsqueeze(1)), dim=1)
        certain = torch.cat((certain[parents], found[parents, children].unsqueeze(1)), dim=1)
    ended += zip(grid.ids(rows), certain, strict=True)
    return JointResult(
        sequences=tuple(ids for ids, _ in ended),
        evidence=tuple(each for _, each in ended),
        tested=tested,
        finished=not clock.spent(),
    )


def _matched(
    found: Float[Tensor, "prefixes tokens"], *, records: int
) -> tuple[Int64[Tensor, " next"], Int64[Tensor, " next"]]:
    """Prefix and token of every continuation.

    The matching with most evidence comes first. A token left over splits the prefix that it fits best; a prefix left over
    takes a token that another one has too, where chance would hardly favor it so much and records are left.
    """
    left, right = (torch.from_numpy(side) for side in linear_sum_assignment(found.numpy(), maximize=True))
    prefixes, tokens = found.shape
    if tokens > prefixes:
        spare = torch.ones(tokens, dtype=torch.bool).index_fill(0, right, False).nonzero().flatten()
        left, right = torch.cat((left, found[:, spare].argmax(dim=0))), torch.cat((right, spare))
    elif prefixes > tokens:
        spare = torch.ones(prefixes, dtype=torch.bool).index_fill(0, left, False).nonzero().flatten()
        value, token = found[spare].max(dim=1)
        sure = value > -torch.log(torch.tensor(FALSE_ALARM_RATE / found.numel()))
        left, right = torch.cat((left, spare[sure])), torch.cat((right, token[sure]))
    order = left.argsort(stable=True)
    return left[order], right[order]
