"""Why: when more tokens are summed than a matrix has rows or columns, no token can be tested alone: the span holds
everything. But the sum still is made of them. Here every token of the vocabulary is weighed by how much likelier it makes
the sums, first alone, then given all the others. Must not know where the sums come from.

    M_j = Σ_t f_j(z_t) c_tjᵀ,   f_j(z) = F_j z + b_j known,  c_tj unknown,  t over the tokens of the batch.

With c_tj Gaussian the columns of M_j have covariance Σ_j = Σ_t w f_j(z_t) f_j(z_t)ᵀ, and the log-likelihood ratio of one
more token is that of a scale mixture:  ½ [κ/(1+κ) |a|² − m log(1+κ)],  a = Mᵀ Σ⁻¹ f / √(fᵀ Σ⁻¹ f),  κ = w fᵀ Σ⁻¹ f.
Summed over many sums j, weak evidence becomes certainty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.core.attack import Clock

_ROUNDS = 40
_DAMPING = 0.35
_SETTLED = 0.02
"""Rounds end when no probability has moved by more than this."""
_PAIRS_PER_TOKEN, _FEWEST_PAIRS = 96, 4096
"""Candidate pairs that are weighed jointly, per token of the batch: the first weighing ranks the rest below them."""
_WHITEN_FROM = 4
"""Rows per column from which the columns' own covariance is known well enough to divide by it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Sums of one kind, whose coefficients have one law.

    Attributes:
        weights: F_j, ``[sums rows features]``; offsets: b_j, ``[sums rows]``.
        sums: M_j, ``[sums rows columns]``.
        own: A with c_t partly along A z_t, ``[columns features]``, or None if nothing is known of the coefficients.
        centered: True if the coefficients of a record sum to zero, so that a common part of all features is invisible.
    """

    weights: Float[Tensor, "sums rows features"]
    offsets: Float[Tensor, "sums rows"]
    sums: Float[Tensor, "sums rows columns"]
    own: Float[Tensor, "columns features"] | None
    centered: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Bag:
    """Tokens with the probability that the batch holds them, most likely first.

    Attributes:
        tokens, probability: one entry per token; expected: sum of the probabilities of all candidates.
        rounds: of joint weighing until it settled or the time was spent.
    """

    tokens: Int64[Tensor, " tokens"]
    probability: Float[Tensor, " tokens"]
    expected: float
    rounds: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """How tokens are laid out.

    Attributes:
        records: number of records; length: positions of each.
        positional: whether a token's features depend on its position.
        causal: whether a position sees only earlier ones.
    """

    records: int
    length: int
    positional: bool
    causal: bool

    @property
    def tokens(self) -> int:
        return self.records * self.length

    @property
    def width(self) -> int:
        return self.length if self.positional else 1

    def own_share(self) -> Float[Tensor, " width"]:
        """Share of a coefficient's energy that is along the token's own vector: one of the positions it sees."""
        seen = torch.arange(1, self.length + 1, dtype=torch.float64)
        share = 1.0 / (seen if self.causal else seen.new_full((self.length,), self.length))
        return share if self.positional else share.mean().reshape(1)


Inputs = Callable[[Int64[Tensor, " tokens"]], Float[Tensor, "tokens width features"]]
"""The layer's input for tokens at every position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _White:
    """A family in units in which features of the vocabulary and coefficients have unit covariance."""

    weights: Float[Tensor, "sums rows features"]
    offsets: Float[Tensor, "sums rows"]
    sums: Float[Tensor, "sums rows columns"]
    own: Float[Tensor, "columns features"] | None
    freedom: float

    @property
    def rows(self) -> int:
        return self.sums.shape[1]

    def features(self, z: Float[Tensor, "pairs features"]) -> Float[Tensor, "sums pairs rows"]:
        """Unit vectors."""
        made = torch.einsum("jrf,pf->jpr", self.weights, z) + self.offsets.unsqueeze(1)
        return made / made.norm(dim=-1, keepdim=True).clamp(min=1e-30)

    def own_directions(self, z: Float[Tensor, "pairs features"]) -> Float[Tensor, "pairs columns"] | None:
        if self.own is None:
            return None
        made = z @ self.own.T
        return made / made.norm(dim=-1, keepdim=True).clamp(min=1e-30)


def find_bag(
    families: Sequence[Family], inputs: Inputs, places: Places, *, vocab_size: int, rng: torch.Generator, clock: Clock
) -> Bag:
    """The tokens of a batch from sums that are too full to test one token alone.

    Args:
        families: at least one.
        inputs: what the families' features are made of.
        rng: draws the sample of the vocabulary that stands for tokens which do not take part.
    """
    sample = torch.randperm(vocab_size, generator=rng)[: max(256, 8192 // places.width)]
    z = inputs(sample).flatten(0, 1)
    white = [_whiten(family, z[z.norm(dim=-1) > 0]) for family in families]
    tokens, positions, scores = _weigh_alone(white, inputs, places, vocab_size)
    rows = torch.cat([inputs(part) for part in tokens.split(512)]) if places.width == 1 else None
    kept = rows[:, 0] if rows is not None else _at(inputs, tokens, positions)
    probability, rounds = _weigh_together(white, kept, positions, scores, places, clock)
    best = torch.zeros(vocab_size, dtype=probability.dtype).scatter_reduce(0, tokens, probability, "amax")
    order = best.argsort(descending=True)[: min(places.tokens, vocab_size)]
    return Bag(tokens=order, probability=best[order], expected=float(probability.sum()), rounds=rounds)


def _at(inputs: Inputs, tokens: Tensor, positions: Tensor) -> Tensor:
    parts = zip(tokens.split(256), positions.split(256), strict=True)
    return torch.cat([inputs(ids)[torch.arange(len(ids)), places] for ids, places in parts])


def _whiten(family: Family, z: Float[Tensor, "samples features"]) -> _White:
    # An update may come in half precision; what the model reads does not.
    made = torch.einsum("jrf,pf->jpr", family.weights.to(z.dtype), z) + family.offsets.to(z.dtype).unsqueeze(1)
    mean = made.mean(dim=1).double()
    spread = made.double() - mean.unsqueeze(1)
    left = _inverse_root(spread.transpose(1, 2) @ spread / len(z))
    sums = left @ family.sums.double()
    if not family.centered:
        # The vocabulary's mean takes part with every token: what it adds says nothing about any.
        common = torch.nn.functional.normalize((left @ mean.unsqueeze(2)), dim=1)
        sums = sums - common @ (common.transpose(1, 2) @ sums)
    sums = sums / sums.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-300)
    columns = sums.shape[2]
    covariance = torch.einsum("jrc,jrd->cd", sums, sums) / (sums.shape[0] * sums.shape[1])
    values = torch.linalg.eigvalsh(covariance)
    freedom = float(values.sum().square() / values.square().sum())
    own = family.own
    if sums.shape[0] * sums.shape[1] >= _WHITEN_FROM * columns:
        right = _inverse_root(covariance)
        sums, freedom = sums @ right, float((values > 1e-9 * values[-1]).sum())
        own = None if own is None else right.to(own.dtype) @ own
    return _White(
        weights=(left @ family.weights.double()).to(z.dtype),
        offsets=(left @ (family.offsets.double() - mean).unsqueeze(2)).squeeze(2).to(z.dtype),
        sums=sums / sums.square().sum(dim=(1, 2), keepdim=True).div(sums.shape[1] * freedom).sqrt(),
        own=own,
        freedom=freedom,
    )


def _inverse_root(covariance: Float[Tensor, "*sums rows rows"]) -> Float[Tensor, "*sums rows rows"]:
    values, vectors = torch.linalg.eigh(covariance)
    floor = values[..., -1:].clamp(min=1e-300) * 1e-6
    return (vectors * values.maximum(floor).rsqrt().unsqueeze(-2)) @ vectors.transpose(-1, -2)


def _weigh_alone(
    white: Sequence[_White], inputs: Inputs, places: Places, vocab_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Every token at every position against the vocabulary as background; the best pairs: tokens, positions, scores."""
    keep = max(_FEWEST_PAIRS, _PAIRS_PER_TOKEN * places.tokens)
    share = places.own_share()
    # One product with the layer's input gives every coefficient of every sum.
    columns = [torch.einsum("jrf,jrc->fjc", one.weights, one.sums.to(one.weights.dtype)) for one in white]
    constants = [torch.einsum("jr,jrc->jc", one.offsets, one.sums.to(one.offsets.dtype)) for one in white]
    found: list[Tensor] = []
    for ids in torch.arange(vocab_size).split(max(1, 16384 // places.width)):
        z = inputs(ids)
        total = z.new_zeros(z.shape[:2], dtype=torch.float64)
        for one, directions, constant in zip(white, columns, constants, strict=True):
            made = (z @ directions.flatten(1)).unflatten(-1, directions.shape[1:]) + constant
            energy = made.square().sum(-1) / one.rows
            along = torch.zeros_like(energy)
            own = one.own_directions(z.flatten(0, 1))
            if own is not None:
                along = (made * own.unflatten(0, z.shape[:2]).unsqueeze(2)).sum(-1).square() / one.rows
            total += _ratio(energy - along, along, one, one.rows / places.tokens, share).sum(-1)
        found.append(torch.where(z.norm(dim=-1) > 0, total, -math.inf))
    scores = torch.cat(found)
    best = scores.flatten().topk(min(keep, scores.numel()))
    return best.indices // places.width, best.indices % places.width, best.values


def _ratio(
    energy: Float[Tensor, "tokens width sums"],
    along: Float[Tensor, "tokens width sums"],
    one: _White,
    kappa: float,
    share: Float[Tensor, " width"],
) -> Float[Tensor, "tokens width sums"]:
    """Log-likelihood ratio of a token alone, in units in which the background has variance one per column."""
    if one.own is None:
        return (energy * (kappa / (1 + kappa)) - one.freedom * math.log1p(kappa)).double() / 2
    own = (kappa * (1 + one.freedom * share)).unsqueeze(-1)
    rest = energy * (kappa / (1 + kappa)) - (one.freedom - 1) * math.log1p(kappa)
    return (rest + along * (own / (1 + own)) - own.log1p()).double() / 2


def _weigh_together(
    white: Sequence[_White],
    z: Float[Tensor, "pairs features"],
    positions: Int64[Tensor, " pairs"],
    scores: Float[Tensor, " pairs"],
    places: Places,
    clock: Clock,
) -> tuple[Float[Tensor, " pairs"], int]:
    """Probabilities of the pairs given each other, by repeated weighing of each against all others."""
    features = [one.features(z) for one in white]
    own = [one.own_directions(z) for one in white]
    share = places.own_share()[positions]
    probability = _normalized(scores, positions, places)
    rounds, moved = 0, 1.0
    while rounds < _ROUNDS and moved >= _SETTLED and not clock.spent():
        rounds += 1
        total = torch.zeros_like(probability)
        for one, f, direction in zip(white, features, own, strict=True):
            for j in range(f.shape[0]):
                total += _against_others(f[j].double(), one, j, direction, probability, share, places.tokens)
        new = _normalized(total, positions, places)
        moved = float((new - probability).abs().max())
        probability = (1 - _DAMPING) * probability + _DAMPING * new
    return probability, rounds


def _against_others(
    f: Float[Tensor, "pairs rows"],
    one: _White,
    j: int,
    direction: Float[Tensor, "pairs columns"] | None,
    probability: Float[Tensor, " pairs"],
    share: Float[Tensor, " pairs"],
    tokens: int,
) -> Float[Tensor, " pairs"]:
    """Log-likelihood ratio of each pair for one sum, with all other pairs taking part by their probabilities."""
    weight = one.rows / tokens
    taken = weight * probability
    rest = max(1.0 - float(taken.sum()) / one.rows, 0.02)
    covariance = torch.diag_embed(f.new_full((one.rows,), rest)) + (f * taken.unsqueeze(1)).T @ f
    covariance = covariance * (one.rows / torch.trace(covariance))
    seen = torch.linalg.solve(covariance, f.T).T
    size = (seen * f).sum(1)
    made = seen @ one.sums[j]
    # Its own part of the covariance is taken out again (rank-one update).
    without = (1 - taken * size).clamp(min=0.05)
    size, made = size / without, made / without.unsqueeze(1)
    energy = made.square().sum(1)
    kappa = weight * size
    if direction is None:
        return (weight * energy / (1 + kappa) - one.freedom * kappa.log1p()) / 2
    along = (made * direction).sum(1).square()
    boosted = weight * (1 + one.freedom * share)
    rest_part = weight * (energy - along) / (1 + kappa) - (one.freedom - 1) * kappa.log1p()
    return (rest_part + boosted * along / (1 + boosted * size) - (boosted * size).log1p()) / 2


def _normalized(scores: Tensor, positions: Tensor, places: Places) -> Tensor:
    """Probabilities whose sum at every position is the number of tokens there."""
    out = torch.empty_like(scores)
    wanted = places.records if places.positional else places.tokens
    for p in range(places.width):
        here = (positions == p).nonzero().flatten()
        if len(here):
            out[here] = torch.sigmoid(scores[here] + _threshold(scores[here], min(wanted, 0.9 * len(here))))
    return out


def _threshold(scores: Tensor, wanted: float) -> float:
    low, high = -float(scores.max()) - 60.0, -float(scores.min()) + 60.0
    for _ in range(60):
        middle = (low + high) / 2
        if float(torch.sigmoid(scores + middle).sum()) < wanted:
            low = middle
        else:
            high = middle
    return low
