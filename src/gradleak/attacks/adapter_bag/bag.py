"""When more tokens are summed than a matrix has rows or columns, no token can be tested alone: the span holds
everything. But the sum still is made of them. Here every token of the vocabulary is weighed by how much likelier it makes
the sums, first alone, then given all the others. Must not know where the sums come from.

    M_j = Σ_t f_j(z_t) c_tjᵀ,   f_j(z) = F_j z + b_j known,  c_tj unknown,  t over the tokens of the batch.

With c_tj Gaussian the columns of M_j have covariance Σ_j = Σ_t w_t f_j(z_t) f_j(z_t)ᵀ, and the log-likelihood ratio of one
more token is that of a scale mixture (``token_weights``). Summed over many sums j, weak evidence becomes certainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.attacks.adapter_bag.token_weights import Candidates, TokenWeights
from gradleak.attacks.adapter_bag.whitening import whiten
from gradleak.core.attack import Clock

_SCREENS = 8
"""Passes over the whole vocabulary: the true tokens that are found make room for those that they had covered."""
_STABLE = 0.01
"""Share of the likely tokens that may still change when the search ends."""
_ROUNDS = 10
"""Joint weighings of the kept candidates between two passes."""
_CANDIDATES_PER_TOKEN, _FEWEST_CANDIDATES = 48, 2048
_SAMPLE = 8192
_FLOATS = 4e6


class Inputs(Protocol):
    """The layer's input for tokens, at every position at which it differs."""

    def rows(self, ids: Int64[Tensor, " tokens"]) -> Float[Tensor, "tokens width features"]: ...

    def project(
        self, ids: Int64[Tensor, " tokens"], directions: Float[Tensor, "features columns"]
    ) -> Float[Tensor, "tokens width columns"]:
        """``rows(ids) @ directions``, which is cheaper where the input is a normalized sum."""
        ...


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
        rounds: of joint weighing until the bag was stable or the time was spent.
    """

    tokens: Int64[Tensor, " tokens"]
    probability: Float[Tensor, " tokens"]
    expected: float
    rounds: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLayout:
    """How tokens are laid out.

    Attributes:
        counts: number of records with a token at each position.
        positional: whether a token's features depend on its position.
        causal: whether a position sees only earlier ones.
    """

    counts: Int64[Tensor, " length"]
    positional: bool
    causal: bool

    @property
    def length(self) -> int:
        return len(self.counts)

    @property
    def tokens(self) -> int:
        return int(self.counts.sum())

    def own_share(self) -> Float[Tensor, " length"]:
        """Share of a coefficient's energy that is along the token's own vector: one of the positions it sees."""
        seen = torch.arange(1, self.length + 1, dtype=torch.float64)
        return 1.0 / (seen if self.causal else seen.new_full((self.length,), self.length))

    def profile(self, family: Family) -> Float[Tensor, " length"]:
        """Energy of a token's coefficients by position, up to a factor, were attention uniform and errors alike.

        dS_ts = a (g_ts − mean g) with a = 1/t over the t positions that position t sees. A key at s is read by every
        t ≥ s, which gives Σ_{t ≥ s} (t − 1)/t³; a query at t reads t keys, which gives (t − 1)/t². A first guess only.
        """
        t = torch.arange(1, self.length + 1, dtype=torch.float64)
        if family.own is None or not self.causal:
            return torch.ones_like(t)
        return ((t - 1) / t**3).flip(0).cumsum(0).flip(0) if family.centered else (t - 1) / t**2


def find_bag(
    families: Sequence[Family],
    inputs: Inputs,
    layout: TokenLayout,
    *,
    vocab_size: int,
    rng: torch.Generator,
    clock: Clock,
) -> Bag:
    """The tokens of a batch from sums that are too full to test one token alone.

    The whole vocabulary is screened, the best candidates are weighed against each other, and with what they explain taken
    out the vocabulary is screened again, until the most likely tokens stay the same.

    Args:
        families: at least one.
        inputs: what the families' features are made of.
        rng: draws the sample of the vocabulary that stands for tokens which do not take part.
    """
    sample = torch.randperm(vocab_size, generator=rng)[: max(256, _SAMPLE // layout.length)]
    z = inputs.rows(sample).flatten(0, 1)
    white = [whiten(f.weights, f.offsets, f.sums, f.own, f.centered, z[z.norm(dim=-1) > 0]) for f in families]
    token_weights = TokenWeights.start(
        white, [layout.profile(family) for family in families], layout.counts, layout.own_share()
    )
    vocabulary = _Vocabulary.of(token_weights, inputs, vocab_size)
    candidates = _refreshed(None, vocabulary.screen(token_weights, None), inputs, token_weights, layout)
    rounds = token_weights.iterate(candidates, rounds=_ROUNDS, clock=clock)
    tokens, probability = candidates.per_token(vocab_size, layout.tokens)
    for _ in range(_SCREENS - 1):
        if clock.spent():
            break
        before = tokens
        candidates = _refreshed(candidates, vocabulary.screen(token_weights, candidates), inputs, token_weights, layout)
        rounds += token_weights.iterate(candidates, rounds=_ROUNDS, clock=clock)
        tokens, probability = candidates.per_token(vocab_size, layout.tokens)
        if int((~torch.isin(tokens, before)).sum()) <= _STABLE * len(tokens):
            break
    return Bag(tokens=tokens, probability=probability, expected=float(candidates.probability.sum()), rounds=rounds)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Vocabulary:
    """The vocabulary in parts, with the lengths of its features, which no screening changes."""

    inputs: Inputs
    parts: tuple[Int64[Tensor, " tokens"], ...]
    squares: tuple[list[Float[Tensor, "tokens width sums"]], ...]

    @staticmethod
    def of(token_weights: TokenWeights, inputs: Inputs, vocab_size: int) -> _Vocabulary:
        directions, constants = token_weights.feature_maps()
        width = inputs.rows(torch.zeros(1, dtype=torch.int64)).shape[1]
        parts = torch.arange(vocab_size).split(max(1, int(_FLOATS / (width * directions.shape[1]))))
        squares = [token_weights.feature_squares(inputs.project(ids, directions) + constants) for ids in parts]
        return _Vocabulary(inputs=inputs, parts=parts, squares=tuple(squares))

    def screen(self, token_weights: TokenWeights, candidates: Candidates | None) -> Float[Tensor, "vocab length"]:
        """Log-likelihood ratio of every token at every position, beside what the candidates explain."""
        directions, constants, sizes = token_weights.coefficient_maps(candidates)
        ratios = [
            token_weights.scores(self.inputs.project(ids, directions) + constants, squares, sizes)
            for ids, squares in zip(self.parts, self.squares, strict=True)
        ]
        return torch.cat(ratios)


def _refreshed(
    candidates: Candidates | None,
    scores: Float[Tensor, "vocab length"],
    inputs: Inputs,
    token_weights: TokenWeights,
    layout: TokenLayout,
) -> Candidates:
    """The best candidates of a screening, and of the last candidates those that are not excluded."""
    keep = max(_FEWEST_CANDIDATES, _CANDIDATES_PER_TOKEN * layout.tokens)
    length = layout.length
    if layout.positional:
        per_position = min(max(1, keep // length), len(scores))
        tokens, at = scores.topk(per_position, dim=0).indices.flatten(), torch.arange(length).repeat(per_position)
        places_of = at.unsqueeze(1)
    else:
        tokens = (scores + token_weights.level).logsumexp(1).topk(min(keep, len(scores))).indices
        at = torch.zeros_like(tokens)
        places_of = torch.arange(length).expand(len(tokens), -1)
    fresh = Candidates.of(token_weights.white, tokens, places_of, _at(inputs, tokens, at), scores)
    return fresh if candidates is None else candidates.alive().joined(fresh, length)


def _at(inputs: Inputs, tokens: Tensor, positions: Tensor) -> Tensor:
    parts = zip(tokens.split(256), positions.split(256), strict=True)
    return torch.cat([inputs.rows(ids)[torch.arange(len(ids)), at] for ids, at in parts])
