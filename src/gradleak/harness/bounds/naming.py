"""Why: attacks propose records, bags of tokens or rankings; a list of candidates asks for one name. Any rule that sees only the
proposal is a part of the attack, so what bounds every attacker bounds it too. Must not know the truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from gradleak.core.attack import Reconstruction


def named(found: Reconstruction, candidates: Sequence[Tensor]) -> tuple[int, ...]:
    """Places of the candidates that a proposal means: several if it cannot tell them apart, none if it says nothing.

    The first of a ranking, as it is; else the candidate that is most alike the first proposed record: for token ids the largest
    share of common tokens 2|a ∩ b| / (|a| + |b|), repetitions counted, and of those the most that agree in their place (where the
    proposal has an order); for pixels the smallest squared distance.
    """
    if found.ranking:
        return tuple(place for place, each in enumerate(candidates) if torch.equal(each, found.ranking[0]))
    if not found.records:
        return ()
    proposal = found.records[0]
    likeness = [_likeness(proposal, each, ordered=found.ordered) for each in candidates]
    best = max(likeness)
    if best[0] == 0.0:
        return ()
    return tuple(place for place, each in enumerate(likeness) if each == best)


def _likeness(proposal: Tensor, candidate: Tensor, *, ordered: bool) -> tuple[float, int]:
    if proposal.is_floating_point():
        if proposal.shape != candidate.shape:
            return 0.0, 0
        return 1.0 / (1.0 + float((proposal.double() - candidate.double()).square().sum())), 0
    one, other = proposal.tolist(), candidate.tolist()
    common = (Counter(one) & Counter(other)).total()
    agreeing = sum(a == b for a, b in zip(one, other, strict=False)) if ordered else 0
    return 2 * common / max(1, len(one) + len(other)), agreeing
