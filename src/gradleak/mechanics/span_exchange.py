"""Why: in a bidirectional model every position sees all others, so a sentence must be found as a whole. Here is what one
exchange of a token costs: the first attention's output as a closed form of its candidates, so that trying a token
takes one multiply-add per head and dimension instead of a forward pass. Must not know how the search proceeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.mechanics.probe import chunks
from gradleak.mechanics.span import Subspace
from gradleak.mechanics.span_readers import Candidates, Model, Reader
from gradleak.models import Block, LinearMap

_CHECK_TOLERANCE = 1e-4
"""A wrong formula (another scale, a rotation, a bias on the scores) is off by far more, rounding by far less."""
_SKETCH_COLUMNS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """All candidate pairs in one numbering: ``tokens[i]`` at ``places[i]``; ``at[p]`` lists the numbers at position p."""

    tokens: Int64[Tensor, " pairs"]
    places: Int64[Tensor, " pairs"]
    at: tuple[Int64[Tensor, " options"], ...]

    @staticmethod
    def of(candidates: Candidates) -> Pairs:
        counts = [ids.numel() for ids in candidates.tokens]
        numbers = torch.arange(sum(counts)).split(counts)
        places = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        return Pairs(tokens=torch.cat(candidates.tokens), places=places, at=tuple(numbers))


class Exchange(Protocol):
    """The cost of sentences in which one position is exchanged."""

    def costs(
        self, rows: Int64[Tensor, "chains seq"], position: int, options: Int64[Tensor, " options"], watched: Sequence[int]
    ) -> Float[Tensor, "chains options"]:
        """Sum of squared residuals at the ``watched`` positions if ``position`` held each option; rows number pairs."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardExchange:
    """By running the model: right for every architecture, slow."""

    model: Model
    pairs: Pairs
    reader: Reader

    def costs(self, rows: Tensor, position: int, options: Tensor, watched: Sequence[int]) -> Tensor:
        chains, seq = rows.shape
        trial = rows.unsqueeze(1).repeat(1, options.numel(), 1)
        trial[:, :, position] = options
        ids = self.pairs.tokens[trial.reshape(-1, seq)]
        found: list[Tensor] = []
        for part in chunks(len(ids), seq * self.reader.space.features * 12):
            (z,) = self.model.inputs((self.reader,), ids[part])
            found.append(self.reader.space.residual(z[:, list(watched)]).square().sum(1))
        return torch.cat(found).reshape(chains, -1)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionExchange:
    """By the closed form of softmax attention, for models whose positions enter with the tokens.

    With scores s and values v of the pairs, head h at a watched pair a gives o_h = Σ_j e^{s_haj} v_hj / Σ_j e^{s_haj}.
    Numerator and denominator are sums over positions, so an exchange changes one term of each; the values are
    projected onto the complement of the space beforehand.

    Attributes:
        weights: e^{s}, ``[pairs pairs heads]``, watched pair first.
        values: ``[pairs heads head_dim]``; outside: their projections ``[pairs heads columns]``.
    """

    weights: Float[Tensor, "pairs pairs heads"]
    values: Float[Tensor, "pairs heads head_dim"]
    outside: Float[Tensor, "pairs heads columns"]

    def costs(self, rows: Tensor, position: int, options: Tensor, watched: Sequence[int]) -> Tensor:
        others = [j for j in range(rows.shape[1]) if j != position]
        total = rows.new_zeros((rows.shape[0], options.numel()), dtype=torch.float64).float()
        for place in watched:
            if place == position:
                continue
            anchor = rows[:, place]
            w = self.weights[anchor.unsqueeze(1), rows[:, others]]
            new = self.weights[anchor.unsqueeze(1), options.unsqueeze(0)]
            z = w.sum(1).unsqueeze(1) + new
            out = self._mix(self.outside, rows[:, others], w, options, new, z)
            all_of = self._mix(self.values, rows[:, others], w, options, new, z)
            # Heads share the complement's columns and own their slice of the output.
            total += out.sum(2).square().sum(-1) / all_of.square().sum((-1, -2))
        return total

    @staticmethod
    def _mix(table: Tensor, rows: Tensor, w: Tensor, options: Tensor, new: Tensor, z: Tensor) -> Tensor:
        base = torch.einsum("cjh,cjhk->chk", w, table[rows])
        return (base.unsqueeze(1) + new.unsqueeze(-1) * table[options].unsqueeze(0)) / z.unsqueeze(-1)


def attention_exchange(
    model: Model, pairs: Pairs, block: Block, first: Reader, output: Reader, rng: torch.Generator
) -> AttentionExchange | None:
    """The closed form, or None where it does not reproduce the model (checked on random rows of candidates)."""
    if len(block.attention_inputs) != 3 or output.path != block.attention_output.module:
        return None
    inputs = _inputs_of_pairs(model, pairs, first)
    q, k, v = (_apply(model, m, inputs) for m in block.attention_inputs)
    if q.shape[1] != k.shape[1] or q.shape[1] % block.heads:
        return None
    head_dim = q.shape[1] // block.heads
    q, k, v = (each.reshape(-1, block.heads, head_dim) for each in (q, k, v))
    scores = torch.einsum("ahd,bhd->abh", q, k) / math.sqrt(head_dim)
    weights = (scores - scores.amax(1, keepdim=True)).exp()
    if not _reproduces(model, pairs, output, weights, v, rng):
        return None
    return AttentionExchange(weights=weights, values=v, outside=_outside(output.space, v, rng))


def _inputs_of_pairs(model: Model, pairs: Pairs, first: Reader) -> Float[Tensor, "pairs features"]:
    tokens, number = pairs.tokens.unique(return_inverse=True)
    positions = len(pairs.at)
    (z,) = model.inputs((first,), tokens.unsqueeze(1).expand(-1, positions))
    return z[number, pairs.places]


def _apply(model: Model, linear: LinearMap, inputs: Tensor) -> Tensor:
    def value(name: str) -> Tensor:
        replaced = (model.parameters or {}).get(name)
        return (model.subject.module.get_parameter(name) if replaced is None else replaced).detach()

    result = inputs @ linear.as_matrix(value(linear.weight)).T
    return result if linear.bias is None else result + value(linear.bias)


def _outside(space: Subspace, v: Tensor, rng: torch.Generator) -> Float[Tensor, "pairs heads columns"]:
    sketch = space.sketch(_SKETCH_COLUMNS, rng).to(v.dtype).reshape(v.shape[1], v.shape[2], -1)
    return torch.einsum("phd,hdk->phk", v, sketch)


def _reproduces(
    model: Model, pairs: Pairs, output: Reader, weights: Tensor, v: Tensor, rng: torch.Generator
) -> bool:
    filled = [at for at in pairs.at if at.numel()]
    rows = torch.stack([at[torch.randint(at.numel(), (4,), generator=rng)] for at in filled], dim=1)
    w = weights[rows.unsqueeze(2), rows.unsqueeze(1)]
    formula = torch.einsum("cajh,cjhd->cahd", w / w.sum(2, keepdim=True), v[rows]).flatten(2)
    (truth,) = model.inputs((output,), pairs.tokens[rows])
    return bool((formula - truth).norm() <= _CHECK_TOLERANCE * truth.norm())
