"""Which projection's gradient holds which tokens. With inputs X and error signals D the gradient is Xᵀ D, so its
column space is the image of the column space of D, and softmax decides the latter:

    queries   D_Q = dS K    the first token of a causal record has a softmax row of one entry, hence no signal
    keys      1ᵀ D_K = 0    per record: a constant added to all keys changes nothing. Only differences, unless a rotation
                            stands between the keys and the scores
    values    D_V = Aᵀ dO   every attended position
    at most (query rows) · (heads) dimensions per record, and the head width per head over all records.

Such a rank is a property of the structure: which entries are zero, which rows are equal, which sums vanish. It is
evaluated where everything else is random, on one attention over abstract token and position vectors; a rank so found is
the generic one with probability 1 (a polynomial that is not zero is not zero at a random point).

Must not know the weights of the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gradleak.models import Block
from gradleak.theory.identifiability.input_kinds import InputLaw
from gradleak.theory.identifiability.rank import TokenPositionGraph, coordinates, token_position_graph
from gradleak.theory.identifiability.receptive_field import Places, Reach

Part = Literal["query", "key", "value", "query+key+value"]

_ZERO, _MEMBER = 1e-11, 1e-6
"""In float64: singular values below the first of these parts of the largest one are zero; members have residuals below
the second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What one projection's gradient holds.

    Attributes:
        part: which projection; ``query+key+value`` for what a fused map's gradient, or all three together, span.
        rank: rank of the gradient.
        room: dimensions there are; at ``rank == room`` every vector is in the span and nothing can be told.
        held: places whose input lies in the span, ``[batch seq]``; tokens: how many places are real.
        reason: one sentence where the answer is not "every place".
    """

    part: Part
    rank: int
    room: int
    held: Places
    tokens: int
    reason: str

    @property
    def tells(self) -> bool:
        """Whether the span separates some token of the batch from the rest of the vocabulary."""
        return self.rank < self.room and bool(self.held.any())


def span_table(
    reach: Reach, block: Block, ids: Int64[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"], law: InputLaw
) -> tuple[Cell, ...]:
    """One cell per projection of the first block, and one for all of them together."""
    graph = token_position_graph(ids, mask, positional=law.positional)
    inputs = coordinates(graph, bias=law.bias, normalized=law.normalization != "none")
    per_place = inputs[graph.pair_of.clamp(min=0)] * mask.unsqueeze(-1)
    errors = _generic_errors(per_place, reach, block, mask, rotary=law.rotary)
    errors["query+key+value"] = torch.cat(list(errors.values()), dim=-1)
    return tuple(_cell(part, error, reach, inputs, graph, mask, law) for part, error in errors.items())


def _generic_errors(
    x: Float[Tensor, "batch seq dimensions"], reach: Reach, block: Block, mask: Places, *, rotary: bool
) -> dict[Part, Float[Tensor, "batch seq columns"]]:
    """The error signals at queries, keys and values of a random attention with this block's heads."""
    rng = torch.Generator().manual_seed(1)
    # More columns than rows per head add no rank.
    width = min(block.attention_output.in_features // block.heads, int(mask.sum()))
    width += width % 2

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    def project(heads: int) -> Tensor:
        projected = x @ random(x.shape[-1], heads * width)
        return projected.unflatten(-1, (heads, width)).transpose(1, 2)  # [batch heads seq width]

    q, k, v = project(block.heads), project(block.kv_heads), project(block.kv_heads)
    turn = _rotation(x.shape[1], width) if rotary else None
    turned_q, turned_k = (q, k) if turn is None else (_turn(q, turn), _turn(k, turn))
    group = block.heads // block.kv_heads
    scores = turned_q @ turned_k.repeat_interleave(group, dim=1).transpose(-1, -2) / (2 * math.sqrt(width))
    attention = torch.softmax(scores.masked_fill(~reach.visible.unsqueeze(1), -math.inf), dim=-1).nan_to_num()
    upstream = random(*q.shape) * reach.output[:, None, :, None]
    passed = upstream @ v.repeat_interleave(group, dim=1).transpose(-1, -2)
    inner = attention * (passed - (attention * passed).sum(-1, keepdim=True))
    to_q = inner @ turned_k.repeat_interleave(group, dim=1)
    to_k, to_v = inner.transpose(-1, -2) @ turned_q, attention.transpose(-1, -2) @ upstream
    to_k, to_v = (errors.unflatten(1, (block.kv_heads, group)).sum(2) for errors in (to_k, to_v))
    if turn is not None:
        to_q, to_k = _turn(to_q, -turn), _turn(to_k, -turn)
    return {"query": _flat(to_q), "key": _flat(to_k), "value": _flat(to_v)}


def _rotation(seq: int, width: int) -> Float[Tensor, "seq pairs"]:
    frequency = torch.logspace(0, -2, width // 2, dtype=torch.float64)
    return torch.arange(seq, dtype=torch.float64).unsqueeze(1) * frequency


def _turn(x: Tensor, angle: Float[Tensor, "seq pairs"]) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def _flat(x: Float[Tensor, "batch heads seq width"]) -> Float[Tensor, "batch seq columns"]:
    return x.transpose(1, 2).flatten(2)


def _cell(
    part: Part, error: Tensor, reach: Reach, inputs: Tensor, graph: TokenPositionGraph, mask: Places, law: InputLaw
) -> Cell:
    per_place = inputs[graph.pair_of[mask]]
    u, singular, _ = torch.linalg.svd(per_place.T @ error[mask], full_matrices=False)
    rank = int((singular > _ZERO * singular[0]).sum()) if float(singular[0]) > 0 else 0
    basis = u[:, :rank]
    outside = (inputs - (inputs @ basis) @ basis.T).norm(dim=1) / inputs.norm(dim=1)
    full = rank >= law.room
    members = (outside < _MEMBER) | full
    held = mask & members[graph.pair_of.clamp(min=0)]
    rank = min(rank, law.room)
    return Cell(
        part=part,
        rank=rank,
        room=law.room,
        held=held,
        tokens=int(mask.sum()),
        reason=_reason(part, rank, held, mask, reach, law),
    )


def _reason(part: Part, rank: int, held: Places, mask: Places, reach: Reach, law: InputLaw) -> str:
    if rank == 0:
        return "no error signal reaches it"
    if rank >= law.room:
        return "full rank: every vector is in the span, so nothing can be told"
    if bool(held[mask].all()):
        return ""
    if part == "key" and not law.rotary and not bool(held.any()):
        return "softmax ignores a constant added to all keys, so only differences of tokens"
    support = {"query": reach.queries, "key": reach.keys}.get(part, reach.values)
    if bool((held & support)[support].all()):
        last = "a token behind the last one that the loss reads has no signal"
        first = "a softmax row of one entry (the first token) has no signal"
        return first if part == "query" and bool(reach.values[mask].all()) else last
    return "fewer error signals than tokens: a mixture"
