"""Why: in a bidirectional model every position sees all others, so a sentence must be found as a whole. Here is what makes
that a problem of linear algebra: the first attention in closed form over all candidates, and what the update says of
its output without knowing the sentence. Must not know how sentences are searched.

With queries q, keys k and values v of the pairs (token, position), row a of a sentence J has the head outputs

    o_h = Σ_{j∈J} e^{q_a·k_j} v_j / Σ_{j∈J} e^{q_a·k_j}.

Two facts about the stacked o = (o_1 … o_H) are in the update, both linear in o:

    (1) o lies in the column space of dL/dW_O:                        C₁ᵀ o = 0,
    (2) the feed-forward part reads norm(r_a + W_O o), r_a known:     Sᵀ W_O o = −Sᵀ r_a,

with C₁ outside the first space and S the directions outside the second one, orthogonal to the norm's bias and folded
through its gain and centering, so that the unknown scale of the norm drops out. With n tokens in the batch these are
2 (d − n) equations for d unknowns: below d / 2 tokens o is known before any other token of the sentence is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.mechanics.probing.heads import read_heads
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.models import Block, LinearMap
from gradleak.span.candidates.types import Candidates
from gradleak.span.encoder.repair import fold, norm_before, parameter
from gradleak.span.reading.observed_layer import ObservedLayer

_CHECK_TOLERANCE = 1e-4
"""A wrong formula (another scale, a rotation, a bias on the scores) is off by far more, rounding by far less."""
_CHECK_ROWS = 4
_NULL_ROWS = 32
_EQUATIONS_PER_POSITION = 2.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """All candidate pairs in one numbering: ``tokens[i]`` at ``places[i]``; ``at[p]`` lists the numbers at position p.

    Positions behind one without candidates are left out: no sentence reaches them.
    """

    tokens: Int64[Tensor, " pairs"]
    places: Int64[Tensor, " pairs"]
    at: tuple[Int64[Tensor, " options"], ...]

    @staticmethod
    def of(candidates: Candidates) -> Pairs:
        """Raises ``ValueError`` if there is no candidate at the first position."""
        counts = [ids.numel() for ids in candidates.tokens]
        counts = counts[: counts.index(0)] if 0 in counts else counts
        if not counts:
            raise ValueError("No candidate at the first position.")
        device = candidates.tokens[0].device
        return Pairs(
            tokens=torch.cat(candidates.tokens[: len(counts)]),
            places=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device),
            at=tuple(torch.arange(sum(counts), device=device).split(counts)),
        )

    @property
    def count(self) -> int:
        return self.tokens.numel()

    def holds(self, place: int, token: int) -> bool:
        """Whether a token is a candidate at a position."""
        return place < len(self.at) and bool((self.tokens[self.at[place]] == token).any())

    def packed(self) -> Int64[Tensor, "rows seq"]:
        """As few sentences as hold every pair: row k has the k-th option of every position, options repeating."""
        rows = torch.arange(max(at.numel() for at in self.at), device=self.tokens.device)
        return torch.stack([at[rows % at.numel()] for at in self.at], dim=1)

    def random_rows(self, count: int, rng: torch.Generator) -> Int64[Tensor, "count seq"]:
        """Sentences of any candidate at every position."""
        drawn = [torch.randint(at.numel(), (count,), generator=rng).to(at.device) for at in self.at]
        return torch.stack([at[some] for at, some in zip(self.at, drawn, strict=True)], dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionEquations:
    """Linear equations on the output of the first attention, in float64.

    Attributes:
        queries: divided by the square root of the head's width; ``keys`` beside them.
        values: projected onto the equations, in units of the typical length of a value.
        target: right-hand side for every pair as the row that attends.
        null: root mean square residual of a row in a sentence of random candidates.
        bias: what is added to the score of one position (first axis) at another; None where nothing is.
    """

    pairs: Pairs
    queries: Float[Tensor, "pairs heads head_dim"]
    keys: Float[Tensor, "pairs heads head_dim"]
    values: Float[Tensor, "pairs heads columns"]
    target: Float[Tensor, "pairs columns"]
    null: float
    bias: Float[Tensor, "places places any"] | None = None

    @property
    def columns(self) -> int:
        return self.target.shape[1]

    def weights(self, anchors: Int64[Tensor, "*batch anchors"]) -> Float[Tensor, "*batch anchors pairs heads"]:
        """e^{q·k} of every anchor with every pair, up to a factor per anchor and head that cancels."""
        scores = torch.einsum("...hd,nhd->...nh", self.queries[anchors], self.keys)
        if self.bias is not None:
            scores = scores + self.bias[self.pairs.places[anchors]][..., self.pairs.places, :]
        return (scores - scores.amax(-2, keepdim=True)).exp()

    def residuals(self, rows: Int64[Tensor, "sentences seq"]) -> Float[Tensor, "sentences seq"]:
        """Length of the violation at every row of whole sentences: next to zero for a true one."""
        scores = _scores(self.queries[rows], self.keys[rows], self.bias, self.pairs.places[rows])
        output = torch.einsum("sajh,sjhm->sam", scores.softmax(2), self.values[rows])
        return (output - self.target[rows]).norm(dim=-1)

    def exchanged(
        self, row: Int64[Tensor, " seq"], place: int, options: Int64[Tensor, " options"]
    ) -> Float[Tensor, " options"]:
        """Sum of squared residuals of a sentence, the row ``place`` left out, if ``place`` held each option."""
        others = torch.cat((row[:place], row[place + 1 :]))
        columns = torch.cat((others, options))
        scores = torch.einsum("ahd,jhd->ajh", self.queries[others], self.keys[columns])
        if self.bias is not None:
            scores = scores + self.bias[self.pairs.places[others]][:, self.pairs.places[columns]]
        old, new = (scores - scores.amax(1, keepdim=True)).exp().split((len(others), len(options)), dim=1)
        total = old.sum(1).unsqueeze(1) + new
        fixed = torch.einsum("ajh,jhm->ahm", old, self.values[others])
        output = torch.einsum("ahm,aoh->aom", fixed, 1 / total)
        output += torch.einsum("aoh,ohm->aom", new / total, self.values[options])
        return (output - self.target[others].unsqueeze(1)).square().sum((0, 2))

    def confidence(self, ids: Sequence[int]) -> Float[Tensor, " length"]:
        """Posterior probability of every token of a sentence among the candidates of its position, the others being given.

        With residuals r of the m equations of a sentence normal with one variance, estimated at the sentence itself, the
        likelihood of an exchange is exp(−(|r'|² − |r|²) / 2 s²), s² = |r|² / m; the prior is uniform over the candidates.
        """
        pairs = self.pairs
        own = [(pairs.tokens[pairs.at[p]] == token).nonzero().flatten() for p, token in enumerate(ids)]
        row = torch.stack([pairs.at[p][found[0]] for p, found in enumerate(own)])
        sure = torch.ones(len(row), dtype=torch.float64)
        for place, options in enumerate(pairs.at[: len(row)]):
            if options.numel() > 1:
                squares = self.exchanged(row, place, options)
                at = int((options == row[place]).nonzero())
                variance = squares[at].clamp(min=1e-300) / ((len(row) - 1) * self.columns)
                sure[place] = (-(squares - squares[at]) / (2 * variance)).softmax(0)[at]
        return sure


def attention_equations(
    model: Model,
    pairs: Pairs,
    block: Block,
    first: ObservedLayer,
    readers: Sequence[ObservedLayer],
    *,
    columns: int,
    rng: torch.Generator,
) -> AttentionEquations | None:
    """The equations that the update holds, mixed at random down to ``columns`` if there are more.

    Returns:
        None where no closed form reproduces the model (checked on random sentences), or neither the attention's output
        projection nor the feed-forward part was shared.
    """
    rows = pairs.random_rows(_CHECK_ROWS, rng)
    forms = (
        make(model, pairs, block, first) for make in (_ClosedForm.plain, _ClosedForm.turned, _ClosedForm.intercepted)
    )
    closed = next((form for form in forms if form is not None and form.reproduces(rows)), None)
    if closed is None:
        return None
    blocks = [made for reader in readers if (made := closed.constraints(reader)) is not None]
    if not blocks:
        return None
    matrix, target = (torch.cat(part, dim=1) for part in zip(*blocks, strict=True))
    if matrix.shape[1] > columns:
        mixer = torch.randn(matrix.shape[1], columns, generator=rng, dtype=torch.float64) / math.sqrt(columns)
        mixer = mixer.to(matrix.device)
        matrix, target = matrix @ mixer, target @ mixer
    heads, width = closed.v.shape[1:]
    made = AttentionEquations(
        pairs=pairs,
        queries=closed.q,
        keys=closed.k,
        values=torch.einsum("phd,hdm->phm", closed.v, matrix.reshape(heads, width, -1)),
        target=target,
        null=1.0,
        bias=closed.bias,
    )
    null = made.residuals(pairs.random_rows(_NULL_ROWS, rng)).square().mean().sqrt()
    return replace(made, null=float(null))


@dataclass(frozen=True, kw_only=True, slots=True)
class _ClosedForm:
    """Queries (scaled), keys and values of the pairs, and where the model itself ran each of them."""

    model: Model
    block: Block
    pairs: Pairs
    ids: Int64[Tensor, "rows seq"]
    row: Int64[Tensor, " pairs"]
    q: Float[Tensor, "pairs heads head_dim"]
    k: Float[Tensor, "pairs heads head_dim"]
    v: Float[Tensor, "pairs heads head_dim"]
    bias: Float[Tensor, "places places any"] | None = None

    @staticmethod
    def plain(model: Model, pairs: Pairs, block: Block, first: ObservedLayer) -> _ClosedForm | None:
        """Scores are products of what the maps make of each pair."""
        ids, row = _laid_out(pairs)
        (z,) = model.inputs((first,), ids)
        inputs = z[row, pairs.places].double()
        made = torch.cat([_apply(model, m, inputs) for m in block.attention_inputs], dim=1)
        if made.shape[1] != 3 * block.attention_output.in_features or block.heads != block.kv_heads:
            return None
        q, k, v = (part.reshape(len(inputs), block.heads, -1) for part in made.chunk(3, dim=1))
        q = q / math.sqrt(q.shape[2])
        return _ClosedForm(model=model, block=block, pairs=pairs, ids=ids, row=row, q=q, k=k, v=v)

    @staticmethod
    def turned(model: Model, pairs: Pairs, block: Block, first: ObservedLayer) -> _ClosedForm | None:
        """The rotary form as published (arXiv 2104.09864, 15): neighbors 2i, 2i + 1 turn by position · 10000^(−2i/width)."""
        flat = _ClosedForm.plain(model, pairs, block, first)
        if flat is None or flat.q.shape[2] % 2:
            return None
        speed = 1e4 ** -torch.arange(0, 1, 2 / flat.q.shape[2], dtype=torch.float64, device=flat.q.device)
        angle = pairs.places[:, None, None] * speed
        turn = torch.polar(torch.ones_like(angle), angle)
        q, k = (
            torch.view_as_real(torch.view_as_complex(each.unflatten(2, (-1, 2)).contiguous()) * turn).flatten(-2)
            for each in (flat.q, flat.k)
        )
        return replace(flat, q=q, k=k)

    @staticmethod
    def intercepted(model: Model, pairs: Pairs, block: Block, first: ObservedLayer) -> _ClosedForm | None:
        """Queries and keys as the attention receives them: rotated, normalized, shared by groups; a bias on the scores."""
        ids, row = _laid_out(pairs)
        heads = read_heads(model.subject, ids, parameters=model.parameters)
        if heads is None or heads.soft_cap is not None:
            return None
        q, k, v = (each[row, pairs.places].double() for each in (heads.query, heads.key, heads.value))
        k, v = (each.repeat_interleave(heads.groups, dim=1) for each in (k, v))
        bias = heads.bias.double().permute(1, 2, 0) if bool(heads.bias.any()) else None
        return _ClosedForm(
            model=model, block=block, pairs=pairs, ids=ids, row=row, q=q * heads.scale, k=k, v=v, bias=bias
        )

    def reproduces(self, rows: Int64[Tensor, "sentences seq"]) -> bool:
        scores = _scores(self.q[rows], self.k[rows], self.bias, self.pairs.places[rows])
        formula = torch.einsum("sajh,sjhd->sahd", scores.softmax(2), self.v[rows]).flatten(2)
        path = self.block.attention_output.module
        truth = self._seen((path,), self.pairs.tokens[rows])[path]
        return bool((formula - truth).norm() <= _CHECK_TOLERANCE * truth.norm())

    def constraints(self, reader: ObservedLayer) -> tuple[Tensor, Tensor] | None:
        """A reader's equations oᵀ M = target: M ``[width columns]`` and target ``[pairs columns]``, values of size one."""
        if reader.path == self.block.attention_output.module:
            matrix = reader.space.complement
            target = matrix.new_zeros(self.pairs.count, matrix.shape[1])
        elif reader.path in {each.module for each in self.block.behind_attention()}:
            made = self._behind_the_norm(reader)
            if made is None:
                return None
            matrix, target = made
        else:
            return None
        size = (self.v.flatten(1) @ matrix).norm(dim=1).square().mean().sqrt()
        return matrix / size, target / size

    def _behind_the_norm(self, reader: ObservedLayer) -> tuple[Tensor, Tensor] | None:
        output = self.block.attention_output
        norm = norm_before(self.model, reader.path, self.block.norms, self.ids[:1])
        if norm is None:
            return None
        seen = self._seen((output.module, norm, reader.path), self.ids)
        stream, read = seen[norm], seen[reader.path]
        directions = fold(self.model, norm, reader.space.complement, stream.flatten(0, 1), read.flatten(0, 1))
        if directions is None:
            return None
        weight, _ = _values(self.model, output)
        known = stream - seen[output.module] @ weight.T
        return weight.T @ directions, -(known[self.row, self.pairs.places] @ directions)

    def _seen(self, paths: Sequence[str], ids: Tensor) -> dict[str, Tensor]:
        found = linear_inputs(self.model.subject, paths, ids, parameters=self.model.parameters)
        return {path: value.double() for path, value in found.items()}


def enough_columns(shares: int, positions: int) -> int:
    """Equations to keep: enough for a choice of one option per position.

    A k-sparse non-negative vector of n shares follows from about 2 k ln(n / k) random equations (Donoho and Tanner,
    PNAS 102, 2005); the relaxation reads a quarter more.
    """
    return max(64, math.ceil(_EQUATIONS_PER_POSITION * positions * math.log(math.e * shares / positions)))


def _laid_out(pairs: Pairs) -> tuple[Int64[Tensor, "rows seq"], Int64[Tensor, " pairs"]]:
    """Sentences that hold every pair, and the sentence of each."""
    return pairs.tokens[pairs.packed()], torch.cat([torch.arange(at.numel(), device=at.device) for at in pairs.at])


def _scores(
    queries: Float[Tensor, "sentences seq heads head_dim"],
    keys: Float[Tensor, "sentences seq heads head_dim"],
    bias: Float[Tensor, "places places any"] | None,
    places: Int64[Tensor, "sentences seq"],
) -> Float[Tensor, "sentences seq seq heads"]:
    scores = torch.einsum("sahd,sjhd->sajh", queries, keys)
    return scores if bias is None else scores + bias[places.unsqueeze(2), places.unsqueeze(1)]


def _apply(model: Model, linear: LinearMap, inputs: Float[Tensor, "rows features"]) -> Float[Tensor, "rows outputs"]:
    weight, bias = _values(model, linear)
    return inputs @ weight.T if bias is None else inputs @ weight.T + bias


def _values(model: Model, linear: LinearMap) -> tuple[Tensor, Tensor | None]:
    """The map's matrix, output axis first, and its bias, in float64, as the probe runs the model."""
    bias = None if linear.bias is None else parameter(model, linear.bias).double()
    return linear.as_matrix(parameter(model, linear.weight)).double(), bias
