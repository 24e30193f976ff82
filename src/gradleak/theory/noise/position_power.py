"""A test that is told all other pairs of token and position says whether a pair is there, not whether it is the pair. Error signals
of one record are nearly parallel, so two of its tokens may trade places at almost no cost. What a search can find is therefore less:
pairs that still hold energy of their own once the weak ones are dropped, and whose alternatives are all worse.

With Y = S + Z in units of its noise, S in the span of the true inputs (projection P), an alternative set of as many inputs (P') explains

    tr(P Y Yᵀ) − tr(P' Y Yᵀ)  ≈  N(μ, 4 μ + 4 m Σ sin²θ),    μ = ‖S‖² − ‖P' S‖²,  θ the angles between both spans,  m columns,

so the true set wins with probability Φ(μ / sd). For one exchanged vector that is ``token_test.told_apart``. Alternatives are: a token at
another position, and two tokens that trade positions; their probabilities are multiplied, as if they were independent. A table of
positions adds to μ the squared change of its misfit, and four times that to the variance.

Must not know models.

Gradients of the token and position tables are sums of the same error signals, so which token stands where is a linear question; here
is up to how many tokens it has one answer. Must not know updates or attacks.

Each of N tokens (each occurring once) stands at one of P positions: a corner of a simplex. Both tables give dL/dP = Xᵀ dL/dE, that is
(P − 1) d equations, the last position's following from the others. A convex search finds the corner if no direction into all N simplices
solves the equations, which for rows in general position is so up to

    N δ_P < (P − 1) d,     δ_P = E min_t (g_1 − t)² + Σ_{j ≥ 2} max(g_j − t, 0)²,     g standard normal:

the statistical dimension of a corner's cone; the change from always to never is sharp where d is large. δ_2 = 1/2 (a box's corner:
twice as many tokens as equations), and δ_P grows only as log P, so more positions hold more tokens.

Source: Amelunxen, Lotz, McCoy and Tropp, arXiv 1303.6672 (statistical dimension; the formula for this cone is derived here).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.core.rng import derive

_DEPENDENT = 1e-9
"""A squared length below which an alternative adds nothing: it explains what the others explain, and is no set of as many."""
_SOME = 2048
"""Alternatives that are weighed at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """True pairs, and what they could be taken for.

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

    def told(self, members: Int64[Tensor, " members"]) -> Float[Tensor, " members"]:
        """The probability that each of these pairs is preferred to its alternatives, with the other members in place.

        What pairs that are no members hold counts as far as members explain it.
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
        known = _Known.of(inputs[place, count], self.signal)
        sure = torch.zeros(len(members), dtype=torch.float64)
        both = torch.stack((left, right), dim=1)
        swapped = known.log_chance(
            both,
            lambda some: inputs[place[both[some].flip(1)], both[some]],
            2 * (rows[left] - rows[right]).square().sum(1),
        )
        sure.index_add_(0, left, swapped).index_add_(0, right, swapped)
        alone = mover.unsqueeze(1)
        moved = known.log_chance(
            alone, lambda some: inputs[target[some], mover[some]].unsqueeze(1), 2 * rows[mover].square().sum(1)
        )
        return sure.index_add_(0, mover, moved).exp()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """The true set: an orthonormal frame, the vectors dual to its inputs, their products, and those of what they hold."""

    frame: Float[Tensor, "features members"]
    dual: Float[Tensor, "members features"]
    inverse: Float[Tensor, "members members"]
    held: Float[Tensor, "members members"]
    columns: int

    @staticmethod
    def of(unit: Tensor, signal: Tensor) -> _Known:
        inverse = torch.linalg.pinv(unit @ unit.T, hermitian=True)
        dual = inverse @ unit
        shown = dual @ signal
        return _Known(
            frame=torch.linalg.qr(unit.T).Q, dual=dual, inverse=inverse, held=shown @ shown.T, columns=signal.shape[1]
        )

    def log_chance(
        self, which: Int64[Tensor, "sets k"], others: Callable[[slice], Tensor], misfit: Float[Tensor, " sets"]
    ) -> Float[Tensor, " sets"]:
        """log Φ(μ / sd) of the exchange of each set of members for ``others(part)``, unit vectors ``[sets k features]``."""
        parts = []
        for start in range(0, len(which), _SOME):
            part = slice(start, start + _SOME)
            loss, turned = self._exchanged(which[part], others(part))
            loss = (loss + misfit[part]).clamp(min=0.0)
            spread = (4 * loss + 4 * self.columns * turned).clamp(min=1e-12).sqrt()
            parts.append(torch.special.log_ndtr(loss / spread))
        return torch.cat(parts) if parts else misfit.new_zeros(0)

    def _exchanged(self, which: Tensor, others: Float[Tensor, "sets k features"]) -> tuple[Tensor, Tensor]:
        """μ of the first attention, and Σ sin²θ."""
        rest = others - (others @ self.frame) @ self.frame.T
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


_SAMPLES = 20_000
_HALVINGS = 40


def corner_dimension(positions: int) -> float:
    """δ_P, from a fixed sample; its standard error is below .02."""
    g = torch.randn(_SAMPLES, positions, generator=derive(0, "corner", positions), dtype=torch.float64)
    own, others = g[:, :1], g[:, 1:]
    low, high = own.clone(), g.amax(dim=1, keepdim=True)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rising = middle - own > (others - middle).clamp(min=0).sum(dim=1, keepdim=True)
        low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
    return float(((own - low).square() + (others - low).clamp(min=0).square().sum(dim=1, keepdim=True)).mean())


def most_placed(width: int, positions: int) -> int:
    """Distinct tokens up to which both tables' gradients determine the place of each; 0 for a single position, where none is asked."""
    if positions < 2:
        return 0
    return int((positions - 1) * width / corner_dimension(positions))
