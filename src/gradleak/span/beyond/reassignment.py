"""Why: every token that the table's gradient shows stands somewhere, so a sequence that took another one's token is seen: some token is
held twice, or by chance, and one is held by none. Here the slots in question are filled anew, all at once. Must not know attention or
how sequences were found.

A slot is a record's position. Its value for token v is the log-likelihood ratio of v's kinship with the slot's neighbors in the record
(normal laws, fitted on slots that are not in question) plus the log-odds of v's share at that position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gradleak.span.likelihood.co_membership import SameRecordEvidence

_REACH = 3
"""Neighbors on either side whose kinship is asked, as in the growth."""
_ROUNDS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """Which token each record holds at each position.

    Attributes:
        tokens: numbers in the list of tokens that occur.
        evidence: in favor of each.
    """

    tokens: Int64[Tensor, "records positions"]
    evidence: Float[Tensor, "records positions"]

    def contested(self, shares: Float[Tensor, "tokens positions"]) -> Bool[Tensor, "records positions"]:
        """Slots that the evidence does not favor, those of tokens that are likelier elsewhere, or that another slot has more right to."""
        strength = self.evidence.clone()
        strength[:, 0] = torch.inf  # of a first token nothing is known
        elsewhere = shares.argmax(dim=1)[self.tokens] != torch.arange(self.tokens.shape[1], device=shares.device)
        strength = torch.where(elsewhere, 0.0, strength.clamp(min=0))
        most = strength.new_zeros(len(shares)).scatter_reduce(0, self.tokens.flatten(), strength.flatten(), "amax")
        return (strength == 0) | (strength < most[self.tokens])


def reassign(
    held: Assignment, shares: Float[Tensor, "tokens positions"], same_record: SameRecordEvidence
) -> Assignment:
    """The slots in question with every token in some slot, as far as they go; the others stay.

    Args:
        same_record: its signals in the order of ``shares``.
    """
    for _ in range(_ROUNDS):
        asked = held.contested(shares)
        if bool(asked.all()) or not bool(asked.any()):
            break
        better = _filled(held, asked, shares, same_record)
        same = bool((better.tokens == held.tokens).all())
        held = better
        if same:
            break
    return held


def _filled(
    held: Assignment,
    asked: Bool[Tensor, "records positions"],
    shares: Float[Tensor, "tokens positions"],
    same_record: SameRecordEvidence,
) -> Assignment:
    value = _values(held, asked, shares, same_record)
    fixed = torch.zeros(len(shares), dtype=torch.bool, device=shares.device)
    fixed[held.tokens[~asked]] = True
    loose = (~fixed).nonzero().flatten()
    # Slots beyond the number of loose tokens hold one that stands elsewhere, too, if they hold any.
    chosen = value.argmax(dim=1)
    sure = value.gather(1, chosen.unsqueeze(1)).squeeze(1) - math.log(len(shares))
    matched = linear_sum_assignment(value[:, loose].cpu().numpy(), maximize=True)
    left, right = (torch.from_numpy(side).to(loose.device) for side in matched)
    chosen[left], sure[left] = loose[right], value[left, loose[right]]
    tokens, evidence = held.tokens.clone(), held.evidence.clone()
    tokens[asked], evidence[asked] = chosen, sure
    return Assignment(tokens=tokens, evidence=evidence)


def _values(
    held: Assignment,
    asked: Bool[Tensor, "records positions"],
    shares: Float[Tensor, "tokens positions"],
    same_record: SameRecordEvidence,
) -> Float[Tensor, "slots tokens"]:
    slots = asked.nonzero()
    signals = same_record.signals[: len(shares)].double()
    positions = held.tokens.shape[1]
    near = torch.arange(positions, device=signals.device)
    near = ((near.unsqueeze(0) - near.unsqueeze(1)).abs() <= _REACH) & (near.unsqueeze(0) != near.unsqueeze(1))
    sure = torch.where(asked.unsqueeze(-1), 0.0, signals[held.tokens])
    around = torch.nn.functional.normalize(torch.einsum("pq,rqd->rpd", near.double(), sure), dim=-1)
    odds = ((shares + 1 / len(shares)) * positions).log()
    value = shares.new_empty(len(slots), len(shares))
    for p in slots[:, 1].unique().tolist():
        here = slots[:, 1] == p
        ratio = _ratio_at(around[:, p] @ signals.T, held.tokens[:, p], ~asked[:, p])
        value[here] = ratio[slots[here, 0]] + odds[:, p]
    return value


def _ratio_at(
    kinship: Float[Tensor, "records tokens"], own: Int64[Tensor, " records"], sure: Bool[Tensor, " records"]
) -> Float[Tensor, "records tokens"]:
    """Log-likelihood ratio of kinship under normal laws of one width; zero where too few slots show what is usual.

    Tokens of one record have parallel signals, wherever they stand, and a token of two records is to both: either is one in ``tokens``,
    so that the ratio says no more than that.
    """
    if int(sure.sum()) < 3:
        return torch.zeros_like(kinship)
    table = kinship[sure][:, own[sure]]
    same = torch.eye(len(table), dtype=torch.bool, device=table.device)
    members, strangers = table[same], table[~same]
    gap = members.mean() - strangers.mean()
    width = ((members.var() + strangers.var()) / 2).clamp(min=1e-12)
    ratio = gap / width * (kinship - (members.mean() + strangers.mean()) / 2)
    rare = torch.full_like(ratio, -math.log(kinship.shape[1]))
    return torch.logaddexp(ratio, rare) - torch.logaddexp(torch.zeros_like(ratio), ratio + rare)
