"""The power of choosing the right (token, position) pairs under noise, given the other pairs.

Error signals of one record are nearly parallel, so two of its tokens may trade positions at almost no cost. A test that is given all
other pairs says whether a pair is present, not whether it beats its alternatives; a search has to do both. With Y = S + Z in units of
its noise, S in the span of the true inputs (projection P), an alternative set of as many inputs (P') explains

    tr(P Y Yᵀ) − tr(P' Y Yᵀ)  ≈  N(μ, 4 μ + 4 m Σ sin²θ),    μ = ‖S‖² − ‖P' S‖²,  θ the angles between both spans,  m columns,

so the true set wins with probability Φ(μ / sd). For one exchanged vector that is ``token_power.told_apart``. Alternatives are: a token at
another position, and two tokens that trade positions; their probabilities are multiplied, as if they were independent. A table of
positions adds to μ the squared change of its misfit, and four times that to the variance.

Must not know models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.mechanics.subspace.frames import outside

_DEPENDENT = 1e-9
"""A squared length below which an alternative adds nothing: it explains what the others explain, and is no set of as many."""
_CHUNK = 2048
"""Alternatives that are compared at once, which bounds the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TruePairs:
    """The (token, position) pairs of a batch, and what they could be taken for.

    Attributes:
        inputs: unit input of every pair's token at every position.
        place: the position of every pair.
        token: its token; pairs of one token do not trade places.
        signal: the clean gradient in units of its noise.
        rows: the token's clean row of the table, in units of the noise on a position; of no columns where no table was shared.
    """

    inputs: Float[Tensor, "positions pairs features"]
    place: Int64[Tensor, " pairs"]
    token: Int64[Tensor, " pairs"]
    signal: Float[Tensor, "features columns"]
    rows: Float[Tensor, "pairs model"]

    def preference(self, members: Int64[Tensor, " members"]) -> Float[Tensor, " members"]:
        """The probability that each of these pairs is preferred to its alternatives, with the other members in place.

        Energy of pairs that are not members counts as far as the members explain it.
        """
        inputs, place, token, rows = (
            self.inputs[:, members],
            self.place[members],
            self.token[members],
            self.rows[members],
        )
        count = torch.arange(len(members))
        left, right = torch.triu_indices(len(members), len(members), 1)
        trade = (place[left] != place[right]) & (token[left] != token[right])
        left, right = left[trade], right[trade]
        positions = len(inputs)
        mover, target = count.repeat_interleave(positions), torch.arange(positions).repeat(len(members))
        away = target != place[mover]
        mover, target = mover[away], target[away]
        span = _TrueSpan.of(inputs[place, count], self.signal)
        log_preferred = torch.zeros(len(members), dtype=torch.float64)
        both = torch.stack((left, right), dim=1)
        swapped = span.log_preference(
            both,
            lambda part: inputs[place[both[part].flip(1)], both[part]],
            2 * (rows[left] - rows[right]).square().sum(1),
        )
        log_preferred.index_add_(0, left, swapped).index_add_(0, right, swapped)
        movers = mover.unsqueeze(1)
        moved = span.log_preference(
            movers, lambda part: inputs[target[part], mover[part]].unsqueeze(1), 2 * rows[mover].square().sum(1)
        )
        return log_preferred.index_add_(0, mover, moved).exp()


@dataclass(frozen=True, kw_only=True, slots=True)
class _TrueSpan:
    """Span of the true inputs: an orthonormal frame, the vectors dual to the inputs, their products, and those of their signals."""

    frame: Float[Tensor, "features members"]
    dual: Float[Tensor, "members features"]
    inverse: Float[Tensor, "members members"]
    held: Float[Tensor, "members members"]
    columns: int

    @staticmethod
    def of(unit: Tensor, signal: Tensor) -> _TrueSpan:
        inverse = torch.linalg.pinv(unit @ unit.T, hermitian=True)
        dual = inverse @ unit
        carried = dual @ signal
        return _TrueSpan(
            frame=torch.linalg.qr(unit.T).Q,
            dual=dual,
            inverse=inverse,
            held=carried @ carried.T,
            columns=signal.shape[1],
        )

    def log_preference(
        self, which: Int64[Tensor, "sets k"], others: Callable[[slice], Tensor], misfit: Float[Tensor, " sets"]
    ) -> Float[Tensor, " sets"]:
        """log Φ(μ / sd) of the exchange of each set of members for ``others(part)``, unit vectors ``[sets k features]``."""
        parts = []
        for start in range(0, len(which), _CHUNK):
            part = slice(start, start + _CHUNK)
            loss, turned = self._exchanged(which[part], others(part))
            loss = (loss + misfit[part]).clamp(min=0.0)
            spread = (4 * loss + 4 * self.columns * turned).clamp(min=1e-12).sqrt()
            parts.append(torch.special.log_ndtr(loss / spread))
        return torch.cat(parts) if parts else misfit.new_zeros(0)

    def _exchanged(self, which: Tensor, others: Float[Tensor, "sets k features"]) -> tuple[Tensor, Tensor]:
        """μ of the first attention, and Σ sin²θ."""
        rest = outside(others, self.frame)
        along = self.dual[which] @ others.transpose(1, 2)
        rows, columns = which.unsqueeze(2), which.unsqueeze(1)
        inverse, held = self.inverse[rows, columns], self.held[rows, columns]
        tilt = torch.linalg.solve(inverse, along)
        shared = along.transpose(1, 2) @ tilt
        size = rest @ rest.transpose(1, 2) + shared
        size = size + _DEPENDENT * torch.eye(size.shape[1], dtype=size.dtype)
        explained = _trace(torch.linalg.solve(size, tilt.transpose(1, 2) @ held @ tilt))
        before = _trace(torch.linalg.solve(inverse, held))
        turned = (which.shape[1] - _trace(torch.linalg.solve(size, shared))).clamp(min=0.0)
        return before - explained, turned


def _trace(matrices: Float[Tensor, "sets k k"]) -> Float[Tensor, " sets"]:
    return matrices.diagonal(dim1=1, dim2=2).sum(dim=1)
