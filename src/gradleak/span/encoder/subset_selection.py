"""Why: with linear equations on the attention's output, a sentence is a choice of one candidate per position that fits
them. Relaxed to shares it is a small convex problem per head normalizer; here it is solved for many anchors at once by an
interior-point method that corrects the normalizers in every step. Must not know models or updates.

For an anchor row a (a pair that the sentence surely holds) with shares x ≥ 0 of the pairs, weights w = e^{q_a·k} and
Z_h = Σ_j w_hj x_j, the residual r(x) = Σ_h Σ_j (w_hj / Z_h) x_j u_hj − target has the derivative

    ∂r/∂x_j = Σ_h (w_hj / Z_h) (u_hj − o_h),      o_h the head's output at x,

so Gauss-Newton steps cost no more than steps with fixed normalizers and converge quadratically. The shares obey linear
constraints (``Layout``), which also leave the length of the sentence open. A step of Mehrotra's predictor-corrector method
(SIAM J. Optim. 2, 1992) solves one positive definite system of the size (equations + constraints), independent of the
number of candidates: its cost is (equations + constraints)² · candidates, the number of steps is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gradleak.span.encoder.attention_equations import AttentionEquations, Pairs

_LOOSE = 0.1
"""Residual, in units of ``AttentionEquations.null``, that counts like a share moved by one."""
_HARD = 1e3
"""The same for a violated constraint: so stiff that it holds, not so stiff that float64 suffers."""
_FIRST_DUAL = 0.2
_TO_THE_WALL = 0.99
_DONE = 1e-9
_WARM_UP = 4
"""Steps before the first rounding: shares are next to uniform until then."""
PLAUSIBLE, RANDOM = 0.3, 1.0
"""Mean residual of a rounded sentence, in units of the null, below which it is worth a test: an exact one, or any at all."""
_BYTES = 96e6


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which shares a sentence may have.

    The columns are the pairs, then the ends e_p ("the sentence ends behind position p"), then the rests f_p. A position
    holds as much as the one before minus what ended there; where closing tokens are known, e_p + f_p = share of the
    closing token at p, so that a sentence ends only behind one.
    """

    matrix: Float[Tensor, "constraints columns"]
    wanted: Float[Tensor, " constraints"]
    places: Int64[Tensor, " pairs"]
    positions: int

    @staticmethod
    def of(pairs: Pairs, lengths: Sequence[int], closing: int | None) -> Layout:
        """``lengths`` that sentences may have; ``closing``: the token that ends every sentence, or None."""
        positions = max(lengths)
        ends = sorted(length - 1 for length in set(lengths))
        share = torch.nn.functional.one_hot(pairs.places, len(pairs.at)).double().T[:positions]
        end = share.new_zeros(positions, len(ends))
        end[ends, range(len(ends))] = 1.0
        flow = torch.cat((share, torch.zeros_like(end)), dim=1)
        flow[1:, : pairs.count] -= share[:-1]
        flow[1:, pairs.count :] += end[:-1]
        last = torch.cat((share[-1:], -end[-1:]), dim=1)
        rows = torch.cat((flow, last))
        if closing is not None:
            marks = share[ends] * (pairs.tokens == closing)
            unit = torch.eye(len(ends)).to(rows)
            ties = torch.cat((marks, -unit), dim=1)
            spare = torch.cat((rows.new_zeros(len(rows), len(ends)), -unit))
            rows = torch.cat((torch.cat((rows, ties)), spare), dim=1)
        wanted = rows.new_zeros(len(rows))
        wanted[0] = 1.0
        return Layout(matrix=rows, wanted=wanted, places=pairs.places, positions=positions)

    @staticmethod
    def around(pairs: Pairs, longest: int) -> Layout:
        """Sentences of at most ``longest`` tokens that hold the middle position: occupied without a gap on either side."""
        width, middle = len(pairs.at), len(pairs.at) // 2
        share = torch.nn.functional.one_hot(pairs.places, width).double().T
        # A position holds as much as the next one inwards minus what ended there.
        place = torch.arange(width, device=share.device)
        inner = torch.where(place < middle, place + 1, place - 1)
        outer = place != middle
        falls = (share[inner] - share)[outer]
        rows = torch.cat((falls, share.sum(0, keepdim=True)))
        slack = torch.eye(len(rows)).to(rows)
        slack[:-1] *= -1.0
        wanted = rows.new_zeros(len(rows))
        wanted[-1] = longest
        return Layout(matrix=torch.cat((rows, slack), dim=1), wanted=wanted, places=pairs.places, positions=width)

    def allowed(self, anchors: Int64[Tensor, "batch anchors"]) -> Bool[Tensor, "batch columns"]:
        """Columns that may be used beside each row of anchors: their positions hold nothing else."""
        extra = self.matrix.shape[1] - len(self.places)
        taken = (self.places == self.places[anchors].unsqueeze(2)).any(1)
        taken |= self.places >= self.positions
        taken.scatter_(1, anchors, False)
        return ~torch.cat((taken, taken.new_zeros(len(anchors), extra)), dim=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selected:
    """What a batch of anchors led to.

    Attributes:
        accepted: for each anchor, whether a sentence through it was accepted.
        shares: final shares of the pairs.
        steps: interior-point steps in all.
    """

    accepted: Bool[Tensor, " batch"]
    shares: Float[Tensor, "batch pairs"]
    steps: int


Judge = Callable[[Sequence[Tensor]], list[bool]]
"""Decides on whole sentences, given as pair numbers of any length, on the host."""


def select(
    equations: AttentionEquations,
    layout: Layout,
    anchors: Int64[Tensor, "batch anchors"],
    *,
    cost: Float[Tensor, " pairs"],
    steps: int,
    judge: Judge | None,
    plausible: float = PLAUSIBLE,
) -> Selected:
    """Searches a sentence through every row of ``anchors``.

    Args:
        cost: price of a share of one, against choices that fit alike.
        steps: most interior-point steps per anchor; what is not accepted by then is abandoned.
        plausible: mean residual, in units of the null, below which the judge is asked.
        judge: asked about every plausible rounding; an anchor is done when one of its sentences is accepted. None where
            the shares are wanted as they are.
    """
    rows = layout.matrix.shape[0] + anchors.shape[1] * (1 + equations.columns)
    chunk = max(1, int(_BYTES / (24.0 * rows * layout.matrix.shape[1])))
    parts = [
        _Interior.start(equations, layout, part, cost).run(steps, judge, plausible) for part in anchors.split(chunk)
    ]
    return Selected(
        accepted=torch.cat([part.accepted for part in parts]),
        shares=torch.cat([part.shares for part in parts]),
        steps=sum(part.steps for part in parts),
    )


def round_shares(layout: Layout, pairs: Pairs, shares: Float[Tensor, "batch pairs"]) -> list[Int64[Tensor, " length"]]:
    """The largest share at every position, up to where less than half of a sentence is left; on the host."""
    choices = torch.stack([at[shares[:, at].argmax(1)] for at in pairs.at[: layout.positions]], dim=1)
    mass = torch.stack([shares[:, at].sum(1) for at in pairs.at[: layout.positions]], dim=1)
    lengths = (mass >= 0.5).int().cumprod(1).sum(1, keepdim=True)
    return [row[1 : 1 + int(row[0])] for row in torch.cat((lengths, choices), dim=1).cpu()]


@dataclass(slots=True)
class _Interior:
    """The state of a batch of interior-point iterations; ``live`` are the anchors still running."""

    equations: AttentionEquations
    layout: Layout
    anchors: Tensor
    cost: Tensor
    x: Tensor
    dual: Tensor
    free: Tensor
    live: Tensor

    @staticmethod
    def start(equations: AttentionEquations, layout: Layout, anchors: Tensor, cost: Tensor) -> _Interior:
        free = layout.allowed(anchors)
        count = len(layout.places)
        per_place = layout.matrix.new_zeros(len(anchors), len(equations.pairs.at))
        per_place.index_add_(1, layout.places, free[:, :count].double())
        x = torch.where(free, 1.0, 0.0).double()
        x[:, :count] /= per_place.clamp(min=1.0)[:, layout.places]
        x[:, count:] /= max(1, layout.matrix.shape[1] - count)
        prices = torch.cat((cost.double(), cost.new_zeros(layout.matrix.shape[1] - count).double()))
        return _Interior(
            equations=equations,
            layout=layout,
            anchors=anchors,
            cost=prices,
            x=x,
            dual=torch.where(free, _FIRST_DUAL, 0.0).double(),
            free=free,
            live=torch.arange(len(anchors), device=anchors.device),
        )

    def run(self, steps: int, judge: Judge | None, plausible: float) -> Selected:
        count = len(self.layout.places)
        accepted = self.free.new_zeros(len(self.anchors))
        spent = 0
        weights = self.equations.weights(self.anchors)
        tried: list[set[tuple[int, ...]]] = [set() for _ in self.anchors]
        for step in range(steps):
            if not len(self.live):
                break
            spent += len(self.live)
            x, dual, gap = _advance(
                *self._linearized(weights[self.live]),
                self.cost,
                self.x[self.live],
                self.dual[self.live],
                self.free[self.live],
            )
            self.x[self.live], self.dual[self.live] = x, dual
            done = ~(gap > _DONE)
            if judge is not None and step >= _WARM_UP:
                good = self._judged(x[:, :count], judge, tried, plausible)
                accepted[self.live[good]] = True
                done |= good
            self.live = self.live[~done]
        return Selected(accepted=accepted, shares=self.x[:, :count], steps=spent)

    def _linearized(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Derivative and value of everything that should be zero: equations of the anchors, constraints, anchors' shares."""
        live, count = self.live, len(self.layout.places)
        x, anchors = self.x[live], self.anchors[live]
        w = weights * x[:, None, :count, None].ne(0)
        w = w / torch.einsum("banh,bn->bah", w, x[:, :count]).unsqueeze(2)
        output = torch.einsum("banh,bn,nhm->bahm", w, x[:, :count], self.equations.values)
        slope = torch.einsum("banh,nhm->bamn", w, self.equations.values)
        slope = slope - torch.einsum("banh,bahm->bamn", w, output)
        scale = 1.0 / (_LOOSE * self.equations.null)
        residual = (output.sum(2) - self.equations.target[anchors]) * scale
        extra = x.shape[1] - count
        slope = torch.nn.functional.pad(slope.flatten(1, 2) * scale, (0, extra))
        chosen = torch.nn.functional.one_hot(anchors, x.shape[1]).double() * _HARD
        fixed = (self.layout.matrix * _HARD).expand(len(live), -1, -1)
        matrix = torch.cat((slope, fixed, chosen), dim=1)
        value = torch.cat(
            (
                residual.flatten(1),
                _HARD * (x @ self.layout.matrix.T - self.layout.wanted),
                _HARD * (x.gather(1, anchors) - 1.0),
            ),
            dim=1,
        )
        return matrix, value

    def _judged(self, shares: Tensor, judge: Judge, tried: list[set[tuple[int, ...]]], plausible: float) -> Tensor:
        """Which live anchors have a rounding that is plausible, new to the anchor, and accepted."""
        rows = round_shares(self.layout, self.equations.pairs, shares)
        asked: list[int] = []
        for index, (row, anchor) in enumerate(zip(rows, self.live.tolist(), strict=True)):
            seen, key = tried[anchor], tuple(row.tolist())
            if key and key not in seen:
                seen.add(key)
                asked.append(index)
        good = [False] * len(rows)
        level = _mean_residuals(self.equations, [rows[i] for i in asked])
        asked = [i for i, value in zip(asked, level, strict=True) if value < plausible * self.equations.null]
        for index, verdict in zip(asked, judge([rows[i] for i in asked]) if asked else [], strict=True):
            good[index] = verdict
        return torch.tensor(good, device=shares.device)


def _mean_residuals(equations: AttentionEquations, rows: Sequence[Tensor]) -> list[float]:
    """Mean residual of every sentence, sentences of one length at a time."""
    level = [0.0] * len(rows)
    for length in {len(row) for row in rows}:
        same = [i for i, row in enumerate(rows) if len(row) == length]
        values = equations.residuals(torch.stack([rows[i] for i in same]).to(equations.target.device)).mean(1)
        for i, value in zip(same, values.tolist(), strict=True):
            level[i] = value
    return level


def _advance(
    matrix: Float[Tensor, "batch rows columns"],
    value: Float[Tensor, "batch rows"],
    cost: Float[Tensor, " columns"],
    x: Float[Tensor, "batch columns"],
    dual: Float[Tensor, "batch columns"],
    free: Bool[Tensor, "batch columns"],
) -> tuple[Tensor, Tensor, Tensor]:
    """One predictor-corrector step for min ½‖value + matrix·Δx‖² + cost·x with x ≥ 0.

    Newton's system (matrixᵀ matrix + diag(dual/x)) Δx = b is solved in the space of the rows (Woodbury).

    Returns:
        New shares, new duals, and the mean complementarity before the step (NaN where the system broke down).
    """
    inverse = torch.where(free, x / dual, 0.0)
    system = (matrix * inverse.unsqueeze(1)) @ matrix.transpose(1, 2)
    system.diagonal(dim1=1, dim2=2).add_(1.0)
    factor, failed = torch.linalg.cholesky_ex(system)
    gradient = -(matrix.transpose(1, 2) @ value.unsqueeze(2)).squeeze(2) - cost
    pull = torch.where(free, 1.0 / x, 0.0)

    def direction(product: Tensor) -> tuple[Tensor, Tensor]:
        plain = inverse * (gradient + product * pull)
        inner = torch.cholesky_solve(matrix @ plain.unsqueeze(2), factor)
        dx = plain - inverse * (matrix.transpose(1, 2) @ inner).squeeze(2)
        return dx, torch.where(free, product * pull - dual - dual * dx * pull, 0.0)

    number = free.sum(1, keepdim=True)
    gap = (x * dual).sum(1, keepdim=True) / number
    dx, dy = direction(torch.zeros_like(x))
    length = torch.minimum(_room(x, dx), _room(dual, dy))
    reached = ((x + length * dx) * (dual + length * dy)).sum(1, keepdim=True) / number
    dx, dy = direction((reached / gap) ** 3 * gap - dx * dy)
    length = _TO_THE_WALL * torch.minimum(_room(x, dx), _room(dual, dy))
    gap = torch.where(failed.unsqueeze(1) == 0, gap, torch.nan).squeeze(1)
    broken = gap.isnan().unsqueeze(1)
    return torch.where(broken, x, x + length * dx), torch.where(broken, dual, dual + length * dy), gap


def _room(value: Tensor, change: Tensor) -> Float[Tensor, "batch 1"]:
    """The longest step, at most one, that keeps every entry non-negative."""
    limits = torch.where(change < 0, -value / change, torch.inf)
    return limits.amin(1, keepdim=True).clamp(max=1.0)
