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
_SKETCH_COLUMNS = 96
_RELAXATIONS = 8
_SETTLED = 1e-3
_TRUSTED = (0, 4)
"""Positions that a round of relaxation takes over from the one before as further anchors."""


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
        self,
        rows: Int64[Tensor, "chains seq"],
        position: int,
        options: Int64[Tensor, " options"],
        watched: Sequence[int],
    ) -> Float[Tensor, "chains options"]:
        """Sum of squared residuals at the ``watched`` positions if ``position`` held each option; rows number pairs."""
        ...

    def relax(
        self, anchors: Int64[Tensor, "chains watched"], options: Sequence[Int64[Tensor, " options"]]
    ) -> Int64[Tensor, "chains seq"] | None:
        """Sentences that fit the ``anchors`` (pairs they surely hold) if choices may be mixed; None if not available."""
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

    def relax(self, anchors: Tensor, options: Sequence[Tensor]) -> Tensor | None:
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionExchange:
    """By the closed form of softmax attention, for models whose positions enter with the tokens.

    With scores s and values v of the pairs, head h at a watched pair a gives o_h = Σ_j e^{s_haj} v_hj / Σ_j e^{s_haj}.
    Numerator and denominator are sums over positions, so an exchange changes one term of each; the values are
    projected onto the complement of the space beforehand.

    Attributes:
        weights: e^{s}, ``[pairs pairs heads]``, watched pair first.
        outside: projected values, ``[pairs heads columns]``, in units of the typical length of an output.
    """

    weights: Float[Tensor, "pairs pairs heads"]
    outside: Float[Tensor, "pairs heads columns"]

    def costs(self, rows: Tensor, position: int, options: Tensor, watched: Sequence[int]) -> Tensor:
        # The exchanged position would change its own query: it is left out of the sum for every option alike.
        anchors = rows[:, [place for place in watched if place != position]]
        others = torch.cat((rows[:, :position], rows[:, position + 1 :]), dim=1)
        w = self.weights[anchors.unsqueeze(2), others.unsqueeze(1)]
        base = torch.einsum("cajh,cjhk->cahk", w, self.outside[others])
        new = self.weights[anchors.unsqueeze(2), options]
        z = w.sum(2).unsqueeze(2) + new
        # Heads share the complement's columns: their shares add up before the length is taken.
        fixed = torch.einsum("cahk,caoh->caok", base, 1 / z)
        moving = torch.einsum("caoh,ohk->caok", new / z, self.outside[options])
        return (fixed + moving).square().sum((1, 3))

    def relax(self, anchors: Tensor, options: Sequence[Tensor]) -> Tensor | None:
        """Rounds of least squares over mixtures; each round trusts the most decided positions of the one before."""
        known, found = anchors, []
        shares: Tensor | None = None
        for extra in _TRUSTED:
            if shares is not None:
                rows, sure = _decide(shares, options)
                places = sure.topk(min(extra, len(options)), dim=1).indices
                known = torch.cat((anchors, rows.gather(1, places)), dim=1)
            shares = self._shares(known, options, shares)
            found.append(_decide(shares, options)[0])
        return torch.cat(found)

    def _shares(
        self, anchors: Int64[Tensor, "chains watched"], options: Sequence[Tensor], start: Tensor | None
    ) -> Float[Tensor, "chains columns"]:
        """With its denominators fixed, an output is linear in the share of every pair: solve, update them, repeat.

        The shares sum to one at each position; the rows of the anchors must lie in the space.
        """
        columns = torch.cat(list(options))
        counts = torch.tensor([o.numel() for o in options])
        place = torch.repeat_interleave(torch.arange(len(options)), counts)
        one_of = torch.nn.functional.one_hot(place, len(options)).T.double()
        w = self.weights[anchors.unsqueeze(2), columns].double()
        u = self.outside[columns].double()
        share = (1.0 / counts[place]).double().expand(len(anchors), -1) if start is None else start
        for _ in range(_RELAXATIONS):
            denominators = torch.einsum("canh,cn->cah", w, share)
            rows = torch.einsum("canh,nhk->cakn", w / denominators.unsqueeze(2), u).flatten(1, 2)
            gram = rows.transpose(1, 2) @ rows
            scale = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
            # The sums weigh so much that they hold; the ridge only decides between solutions that fit alike.
            system = gram + 1e3 * scale * (one_of.T @ one_of) + 1e-9 * scale * torch.eye(len(columns))
            target = 1e3 * scale * one_of.sum(0).unsqueeze(1).expand(len(anchors), -1, 1)
            new = torch.linalg.solve(system, target).squeeze(2).clamp(min=0.0)
            new = new / (new @ one_of.T)[:, place].clamp(min=1e-12)
            moved = float((new - share).abs().max())
            share = new
            if moved < _SETTLED:
                break
        return share


def _decide(
    shares: Tensor, options: Sequence[Tensor]
) -> tuple[Int64[Tensor, "chains seq"], Float[Tensor, "chains seq"]]:
    """The option with the largest share at every position, and how large that share is (choices of one last)."""
    parts = shares.split([o.numel() for o in options], dim=1)
    best = [part.max(dim=1) for part in parts]
    rows = torch.stack([o[b.indices] for o, b in zip(options, best, strict=True)], dim=1)
    sure = torch.stack([b.values if o.numel() > 1 else -b.values for o, b in zip(options, best, strict=True)], dim=1)
    return rows, sure


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
    length = v.flatten(1).norm(dim=1).mean()
    return AttentionExchange(weights=weights, outside=_outside(output.space, v, rng) / length)


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


def _reproduces(model: Model, pairs: Pairs, output: Reader, weights: Tensor, v: Tensor, rng: torch.Generator) -> bool:
    filled = [at for at in pairs.at if at.numel()]
    rows = torch.stack([at[torch.randint(at.numel(), (4,), generator=rng)] for at in filled], dim=1)
    w = weights[rows.unsqueeze(2), rows.unsqueeze(1)]
    formula = torch.einsum("cajh,cjhd->cahd", w / w.sum(2, keepdim=True), v[rows]).flatten(2)
    (truth,) = model.inputs((output,), pairs.tokens[rows])
    return bool((formula - truth).norm() <= _CHECK_TOLERANCE * truth.norm())
