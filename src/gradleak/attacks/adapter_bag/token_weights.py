"""Tokens that are summed together hide each other. Here candidates are weighed against each other: each by the
likelihood of the sums with it and without it, all others taking part by their probabilities; and the strength with
which a position takes part, which varies a hundredfold along a causal record, is learned from the same sums.

Of one more token with unit features f, coefficients of variance w and covariance Σ of what the others make,

    ratio = ½ [κ/(1+κ) |a|² − m log(1+κ)],   κ = w fᵀ Σ⁻¹ f,   a = Mᵀ Σ⁻¹ f / √(fᵀ Σ⁻¹ f),   m columns.

Must not know where the sums come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.attacks.adapter_bag.whitening import White
from gradleak.core.attack import Clock

_DAMPING = 0.5
_STEADY = 0.02
"""Rounds end when no probability has moved by more than this."""
_HALVINGS = 50
_LEAST_WEIGHT = 1e-3
"""Of the largest: a position whose strength is guessed as zero may still turn out otherwise."""
_EXCLUDED = 1e-3
"""Probability below which a candidate does not outlive a new screening of the vocabulary."""
_LEAST_REST = 0.02
"""Share of a sum that is left to tokens which are not among the candidates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Candidates, each for one position or (where positions do not show in features) for any one of all.

    Attributes:
        places: positions that the candidate may have.
        features, own: per family, unit vectors.
        probability: that it takes part at each of its places.
    """

    tokens: Int64[Tensor, " candidates"]
    places: Int64[Tensor, "candidates choices"]
    features: tuple[Float[Tensor, "sums candidates rows"], ...]
    own: tuple[Float[Tensor, "candidates columns"] | None, ...]
    probability: Float[Tensor, "candidates choices"]
    fresh: bool = True

    @staticmethod
    def of(white: Sequence[White], tokens: Tensor, places: Tensor, z: Tensor, scores: Tensor) -> Candidates:
        """Candidates with inputs ``z``; ``scores`` ``[vocab length]`` stand for probabilities until these are known."""
        return Candidates(
            tokens=tokens,
            places=places,
            features=tuple(family.features(z) for family in white),
            own=tuple(family.own_directions(z) for family in white),
            probability=scores[tokens.unsqueeze(1), places],
        )

    def at(self, kept: Tensor) -> Candidates:
        return replace(
            self,
            tokens=self.tokens[kept],
            places=self.places[kept],
            features=tuple(f[:, kept] for f in self.features),
            own=tuple(None if o is None else o[kept] for o in self.own),
            probability=self.probability[kept],
        )

    def alive(self) -> Candidates:
        return self.at(self.probability.sum(1) > _EXCLUDED)

    def joined(self, fresh: Candidates, length: int) -> Candidates:
        """These candidates with their probabilities, and those of ``fresh`` that are new, with none."""
        new = fresh.at(~torch.isin(fresh._keys(length), self._keys(length)))
        own = [None if a is None or b is None else torch.cat((a, b)) for a, b in zip(self.own, new.own, strict=True)]
        features = [torch.cat(pair, dim=1) for pair in zip(self.features, new.features, strict=True)]
        return Candidates(
            tokens=torch.cat((self.tokens, new.tokens)),
            places=torch.cat((self.places, new.places)),
            features=tuple(features),
            own=tuple(own),
            probability=torch.cat((self.probability, torch.zeros_like(new.probability))),
            fresh=False,
        )

    def _keys(self, length: int) -> Tensor:
        return self.tokens * length + self.places[:, 0]

    def per_token(self, vocab_size: int, most: int) -> tuple[Int64[Tensor, " tokens"], Float[Tensor, " tokens"]]:
        """The ``most`` likely tokens, and the probability that the batch holds them anywhere."""
        anywhere = self.probability.sum(1).clamp(max=1 - 1e-15)
        present = -anywhere.new_zeros(vocab_size).index_add(0, self.tokens, (-anywhere).log1p()).expm1()
        best = present.argsort(descending=True, stable=True)[: min(most, vocab_size)]
        return best, present[best]


@dataclass(slots=True)
class TokenWeights:
    """How much a token's coefficients weigh at every position, learned from the same sums as the candidates.

    Attributes:
        weights: per family and position, the variance of a token's coefficients.
        level: per position, what is added to log-likelihood ratios so that probabilities sum to the number of records.
    """

    white: tuple[White, ...]
    weights: list[Float[Tensor, " length"]]
    level: Float[Tensor, " length"]
    counts: Int64[Tensor, " length"]
    share: Float[Tensor, " length"]

    @staticmethod
    def start(white: Sequence[White], profiles: Sequence[Tensor], counts: Tensor, share: Tensor) -> TokenWeights:
        initial = TokenWeights(
            white=tuple(white),
            weights=[p.clamp(min=_LEAST_WEIGHT * float(p.max())) for p in profiles],
            level=share.new_zeros(len(counts)),
            counts=counts,
            share=share,
        )
        initial.weights = [initial._whole(family, w) for family, w in zip(white, initial.weights, strict=True)]
        return initial

    def _whole(self, family: White, weight: Tensor) -> Tensor:
        """Scaled such that all tokens together make up the whole sum."""
        return weight * (family.rows / float((weight * self.counts).sum()))

    def feature_maps(self) -> tuple[Float[Tensor, "features columns"], Float[Tensor, " columns"]]:
        """Directions and constants that make all features of all families out of a layer's input."""
        maps = [family.weights.permute(2, 0, 1).flatten(1) for family in self.white]
        return torch.cat(maps, dim=1), torch.cat([family.offsets.flatten() for family in self.white])

    def feature_squares(
        self, products: Float[Tensor, "tokens width columns"]
    ) -> list[Float[Tensor, "tokens width sums"]]:
        """Squared lengths of what ``feature_maps`` make, per family."""
        parts = products.split([family.offsets.numel() for family in self.white], dim=-1)
        return [
            part.unflatten(-1, family.offsets.shape).square().sum(-1)
            for part, family in zip(parts, self.white, strict=True)
        ]

    def coefficient_maps(
        self, candidates: Candidates | None
    ) -> tuple[Float[Tensor, "features columns"], Float[Tensor, " columns"], list[Float[Tensor, " sums"]]]:
        """Directions and constants that make Mᵀ Σ⁻¹ f of every sum out of a layer's input, Σ being what the
        candidates explain; and per family the mean of fᵀ Σ⁻¹ f over unit f."""
        directions, constants, sizes = [], [], []
        for k, family in enumerate(self.white):
            inverse = torch.eye(family.rows, dtype=torch.float64).expand(len(family.sums), -1, -1)
            if candidates is not None:
                inverse = torch.linalg.inv(self._covariances(candidates, k))
            seen = (inverse @ family.sums).to(family.weights.dtype)
            directions.append(torch.einsum("jrf,jrc->fjc", family.weights, seen).flatten(1))
            constants.append(torch.einsum("jr,jrc->jc", family.offsets, seen).flatten())
            sizes.append(inverse.diagonal(dim1=1, dim2=2).mean(1).to(family.weights.dtype))
        return torch.cat(directions, dim=1), torch.cat(constants), sizes

    def scores(
        self,
        products: Float[Tensor, "tokens width columns"],
        squares: Sequence[Float[Tensor, "tokens width sums"]],
        sizes: Sequence[Float[Tensor, " sums"]],
    ) -> Float[Tensor, "tokens length"]:
        """Ratios of tokens that are no candidates yet, from what ``coefficient_maps`` and ``feature_squares`` make."""
        total = products.new_zeros(len(products), len(self.counts), dtype=torch.float64)
        parts = products.split([family.sums.shape[0] * family.sums.shape[2] for family in self.white], dim=-1)
        for family, weight, part, square, size in zip(self.white, self.weights, parts, squares, sizes, strict=True):
            coefficients = part.unflatten(-1, (family.sums.shape[0], family.sums.shape[2])).square().sum(-1)
            kappa = weight.to(products.dtype).unsqueeze(1) * size
            energy = coefficients / (square.clamp(min=1e-30) * size) * (kappa / (1 + kappa))
            total += (energy.sum(-1) - family.freedom * kappa.log1p().sum(-1)).double() / 2
        known = torch.stack([square.sum(-1) for square in squares]).amin(0) > 0
        return torch.where(known, total, -torch.inf)

    def _covariances(self, candidates: Candidates, k: int) -> Float[Tensor, "sums rows rows"]:
        taken = (self.weights[k][candidates.places] * candidates.probability).sum(1)
        return torch.stack([_covariance(f, taken) for f in candidates.features[k]])

    def iterate(self, candidates: Candidates, *, rounds: int, clock: Clock) -> int:
        """Weighs the candidates until their probabilities, which are written into them, are steady."""
        probability = candidates.probability
        if candidates.fresh:
            probability.copy_(self._normalized(probability.clone(), candidates))
        for done in range(rounds):
            if clock.spent():
                return done
            total = torch.zeros_like(probability)
            for k, family in enumerate(self.white):
                ratio, energy = self._family(family, candidates, k)
                total += ratio
                self.weights[k] = self._whole(family, _learned(self.weights[k], energy, candidates))
            new = self._normalized(total, candidates)
            moved = float((new - probability).abs().max())
            probability.mul_(1 - _DAMPING).add_(_DAMPING * new)
            if moved < _STEADY:
                return done + 1
        return rounds

    def _family(self, family: White, candidates: Candidates, k: int) -> tuple[Tensor, Tensor]:
        """Ratios of the candidates for all sums of a family, and the mean energy expected of their coefficients."""
        weight, share, own = self.weights[k][candidates.places], self.share[candidates.places], candidates.own[k]
        taken = (weight * candidates.probability).sum(1, keepdim=True)
        total, energies = torch.zeros_like(weight), torch.zeros_like(weight)
        for f, sums in zip(candidates.features[k], family.sums, strict=True):
            covariance = _covariance(f, taken[:, 0])
            seen = torch.linalg.solve(covariance, f.T).T
            size = (seen * f).sum(1, keepdim=True)
            # Its own part of the covariance is taken out again (rank-one update).
            without = (1 - taken * size).clamp(min=0.05)
            coefficients = (seen @ sums) / without
            size = size / without
            energy = coefficients.square().sum(1, keepdim=True) / size
            along = (
                torch.zeros_like(energy) if own is None else (coefficients * own).sum(1, keepdim=True).square() / size
            )
            kappa = weight * size
            total += _ratio(energy, along, family.freedom, kappa, None if own is None else share)
            shrunk = kappa / (1 + kappa)
            energies += weight / (1 + kappa) + shrunk.square() * energy / (family.freedom * size)
        return total, energies / len(family.sums)

    def _normalized(
        self, scores: Float[Tensor, "candidates choices"], candidates: Candidates
    ) -> Float[Tensor, "candidates choices"]:
        """Probabilities that sum to the number of records at every position, and to one at most for a candidate."""
        for p in range(len(self.counts)):
            at_position = (
                (candidates.places[:, 0] == p).nonzero().flatten() if candidates.places.shape[1] == 1 else slice(None)
            )
            column = 0 if candidates.places.shape[1] == 1 else p
            raised = scores[at_position] + self.level[candidates.places[at_position]]
            others = torch.cat((torch.zeros(len(raised), 1), raised[:, :column], raised[:, column + 1 :]), dim=1)
            odds = scores[at_position][:, column] - others.logsumexp(1)
            if len(odds):
                self.level[p] = _level(odds, min(float(self.counts[p]), 0.9 * len(odds)))
        raised = scores + self.level[candidates.places]
        return torch.cat((torch.zeros(len(raised), 1), raised), dim=1).softmax(1)[:, 1:]


def _covariance(f: Float[Tensor, "candidates rows"], taken: Float[Tensor, " candidates"]) -> Float[Tensor, "rows rows"]:
    rows = f.shape[1]
    rest = max(1.0 - float(taken.sum()) / rows, _LEAST_REST)
    covariance = torch.diag_embed(f.new_full((rows,), rest)) + (f * taken.unsqueeze(1)).T @ f
    return covariance * (rows / torch.trace(covariance))


def _ratio(energy: Tensor, along: Tensor, freedom: float, kappa: Tensor, share: Tensor | None) -> Tensor:
    """Log-likelihood ratio of one more token, in units in which what the others make has variance one per column.

    Args:
        energy: of the token's coefficients in all columns; ``along`` of it, along the token's own direction.
        share: of the coefficients' energy that is expected there, or None if nothing is.
    """
    if share is None:
        return (energy * (kappa / (1 + kappa)) - freedom * kappa.log1p()) / 2
    own = kappa * (1 + freedom * share)
    rest = (energy - along) * (kappa / (1 + kappa)) - (freedom - 1) * kappa.log1p()
    return (rest + along * (own / (1 + own)) - own.log1p()) / 2


def _learned(weight: Tensor, energy: Tensor, candidates: Candidates) -> Tensor:
    """Variances by position that make the expected energies most likely (a step of expectation-maximization)."""
    places, probability = candidates.places.flatten(), candidates.probability.flatten()
    mass = torch.zeros_like(weight).index_add(0, places, probability)
    energy_sum = torch.zeros_like(weight).index_add(0, places, probability * energy.flatten())
    return torch.where(mass > 0, energy_sum / mass.clamp(min=1e-9), weight)


def _level(odds: Float[Tensor, " candidates"], wanted: float) -> float:
    """What to add to log odds so that the probabilities sum to ``wanted``."""
    low, high = -float(odds.max()) - 60.0, -float(odds.min()) + 60.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if float(torch.sigmoid(odds + middle).sum()) < wanted:
            low = middle
        else:
            high = middle
    return low
