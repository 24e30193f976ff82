"""What a user can run is the attack, not the most powerful test. Which tokens pass ``span``'s first test (the whole of
the attack ``token_span``) under Gaussian noise follows from the space that noise leaves of the first attention's gradients.

The law of that space given the singular values s of G is known for large matrices (``detectability``): directions with
s ≤ σ (rows · columns)^¼ are gone, the others turn by the angle given there. At the widths of real layers it is not yet
reached near the threshold, where the limit promises directions that are missed. So the space is drawn: G = Xᵀ D from its two factors, noise added, and read by the rule of the attack.
Nothing is searched, no order, no labels, and the parameters' own update is not formed.

Must not know attacks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.errors import NotApplicableError
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.subspace.subspace import column_space
from gradleak.models import Subject
from gradleak.span.candidates.membership import find_candidates
from gradleak.span.reading.observed_layer import ObservedLayer
from gradleak.theory.identifiability.gradient_flow import Flow

_AFFORDED = 8e7
"""Entries of the token table times draws: some seconds of one core."""
_WIDEST = 1536
"""Features up to which a draw takes a few seconds; wider layers are left to the limit law."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstTest:
    """What the first test finds at the user's noise.

    Attributes:
        recall: expected share of the batch's distinct tokens that pass, at any place; recall_error: its standard error over
            the draws.
        false: expected number of tokens of the vocabulary that pass and are not in the batch.
        rank: expected rank of the space.
        draws: of the noise.
    """

    recall: float
    recall_error: float
    false: float
    rank: float
    draws: int


def first_test(
    subject: Subject,
    batch: Batch,
    flows: Mapping[str, Flow],
    *,
    noise_std: Sequence[float],
    dtype: torch.dtype,
    seed: int,
    draws: int = 4,
) -> FirstTest | str:
    """Draws the noise and tests the whole vocabulary; a sentence where that would take too long.

    Args:
        flows: factors of the gradients of the first attention's maps, by module path, in the order of ``noise_std``.
        noise_std: standard deviation per entry of the noise on each of these gradients; the attacker knows it.
        dtype: number format of what is shared.
        draws: of the noise, at most; one is enough without any, and large token tables allow fewer.
    """
    path = next(iter(flows))
    if flows[path].inputs.shape[-1] > _WIDEST:
        return f"the layer is wider than {_WIDEST} features, so that drawing its noise would take minutes."
    signals = [f.inputs[batch.mask].double().T @ f.errors[batch.mask].double() for f in flows.values()]
    truth = batch.inputs[batch.mask].unique()
    afforded = max(1, int(_AFFORDED / (subject.anatomy.vocab_size * flows[path].inputs.shape[-1])))
    draws = min(draws, afforded) if any(noise_std) else 1
    recalls, false, ranks = [], 0.0, 0.0
    for number in range(draws):
        rng = torch.Generator().manual_seed(seed + number)
        released = [_released(g, std, dtype, rng) for g, std in zip(signals, noise_std, strict=True)]
        space = column_space(released, noise_std=noise_std, summands=int(batch.mask.sum()))
        bag = _bag(ObservedLayer(path=path, space=space, weights=()), subject, batch.inputs.shape[1], rng)
        hits = int(torch.isin(truth, bag).sum())
        recalls.append(hits / len(truth))
        false += (len(bag) - hits) / draws
        ranks += space.rank / draws
    mean = math.fsum(recalls) / draws
    spread = math.fsum((recall - mean) ** 2 for recall in recalls) / max(1, draws - 1)
    return FirstTest(recall=mean, recall_error=math.sqrt(spread / draws), false=false, rank=ranks, draws=draws)


def _released(gradient: Tensor, std: float, dtype: torch.dtype, rng: torch.Generator) -> Tensor:
    noise = std * torch.randn(gradient.shape, generator=rng, dtype=gradient.dtype)
    return (gradient + noise).to(dtype).float()


def _bag(reader: ObservedLayer, subject: Subject, positions: int, rng: torch.Generator) -> Tensor:
    try:
        return find_candidates(reader, Model(subject=subject), positions=positions, rng=rng).bag()
    except NotApplicableError:
        # Members cannot be told from the rest: the attack says so and proposes nothing.
        return torch.empty(0, dtype=torch.int64)
