"""Why: noise hides directions of a column space, not tokens: error signals of one record are nearly parallel, so a direction
may drown although every token in it holds far more energy than noise. A token is then told only beside all others, and all
are sought at once as the fewest inputs that explain the gradient. Must not know models, attacks or sequences.

With Y = Σ xᵢ δᵢᵀ + Z the gradient in units of its noise (m columns) and C = Y Yᵀ / m, the shares γᵢ ≥ 0 maximize

    −log det R − tr(R⁻¹ C),      R = 1 + Σ γᵢ xᵢ xᵢᵀ,

whose maximum has few γᵢ > 0, also where the δᵢ are parallel (sparse Bayesian learning for many columns). At a maximum
(xᵢᵀ R⁻¹ C R⁻¹ xᵢ) / (xᵢᵀ R⁻¹ xᵢ) = 1 for every γᵢ > 0: γᵢ is multiplied by a power of that ratio until it is. What is left is
settled by the energy test of ``energy_test``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from scipy.special import chdtri
from torch import Tensor

from gradleak.mechanics.subspace.frames import outside
from gradleak.span.likelihood.energy_test import DEPENDENT

_POWER = 1.5
"""Of the ratio: 1/2 never falls back but takes hundreds of steps, 1 is MacKay's; any has the same fixed points."""
_KEPT = 0.95
"""Part of the candidates that is kept after each step. Swept with ``_POWER`` on one batch of 16 x 16 (seed 0): slower pruning
finds the same tokens, at three times the cost."""
_WARM_UP = 6
_START, _LEAST = 0.2, 0.05
"""First shares: this part of what a candidate would hold if it stood alone."""
_STEPS = 400
_POLISH = 2
_FULL = 0.75
"""Part of the dimensions above which candidates explain everything whatever they are."""
_LARGEST_STEP = 5.0
_CLEAR = 1e5
"""Largest variance, in units of the noise, up to which float32 leaves the inverse of the model some digits."""


def omp_select(
    candidates: Float[Tensor, "candidates features"],
    gradient: Float[Tensor, "features columns"],
    *,
    false_alarms: float,
) -> Int64[Tensor, " members"]:
    """Candidates that explain the gradient, the strongest first; each holds energy of its own that noise does not.

    Args:
        gradient: in units of its noise.
        false_alarms: probability that a vector which is not in the batch is accepted, beside all that are.

    Source: Wipf and Rao, IEEE Trans. Signal Process. 55 (2007), for the likelihood and its maxima.
    Deviations: candidates are pruned by rank at every step, and the last ones by the energy test.
    """
    unit = torch.nn.functional.normalize(candidates.double(), dim=1)
    members = _Shares.start(unit, gradient, price=-math.log(false_alarms)).fewest()
    return members[eliminate(unit[members], gradient, false_alarms=false_alarms)]


def eliminate(
    unit: Float[Tensor, "candidates features"], gradient: Float[Tensor, "features columns"], *, false_alarms: float
) -> Int64[Tensor, " members"]:
    """Candidates left when the one with the least energy of its own is dropped, again and again, until all hold enough.

    As long as all members are among the candidates the energy of every other is that of noise. What depends on candidates before
    it has no energy of its own and is not asked.

    Args:
        unit: of unit length, the likeliest first.
        gradient: in units of its noise.
    """
    threshold = float(chdtri(gradient.shape[1], false_alarms))
    own = torch.linalg.qr(unit.T, mode="r").R.diagonal().square()
    members = (own > DEPENDENT).nonzero().flatten()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(unit[members] @ unit[members].T))
    held = inverse @ (unit[members] @ gradient)
    outer = held @ held.T
    while len(members):
        last = int((outer.diagonal() / inverse.diagonal()).argmin())
        if float(outer[last, last]) >= threshold * float(inverse[last, last]):
            break
        # Without one vector the inverse and what it makes of the gradient lose a term of rank one.
        tilt = inverse[:, last] / inverse[last, last]
        shift = torch.outer(tilt, outer[last])
        outer = outer - shift - shift.T + float(outer[last, last]) * torch.outer(tilt, tilt)
        inverse = inverse - torch.outer(tilt, inverse[last])
        keep = torch.arange(len(members), device=members.device) != last
        members, inverse, outer = members[keep], inverse[keep][:, keep], outer[keep][:, keep]
    return members


def stand_out(
    unit: Float[Tensor, "candidates features"],
    members: Float[Tensor, "members features"],
    gradient: Float[Tensor, "features columns"],
    *,
    false_alarms: float,
) -> Int64[Tensor, " candidates"]:
    """Candidates that beside the members hold more energy than noise, the strongest first."""
    frame = torch.linalg.qr(members.T).Q
    left = outside(unit, frame)
    length = left.square().sum(dim=1)
    # The energy of many candidates is had cheaper from products of features than of columns.
    energy = ((left @ (gradient @ gradient.T)) * left).sum(dim=1) / length.clamp(min=1e-300)
    energy = torch.where(length > DEPENDENT, energy, 0.0)
    found = (energy >= float(chdtri(gradient.shape[1], false_alarms))).nonzero().flatten()
    return found[energy[found].argsort(descending=True)]


@dataclass(slots=True)
class _Shares:
    """The shares of all candidates, and what the likelihood is made of."""

    unit: Float[Tensor, "candidates features"]
    covariance: Float[Tensor, "features features"]
    columns: int
    price: float
    share: Float[Tensor, " candidates"]

    @staticmethod
    def start(unit: Tensor, gradient: Tensor, *, price: float) -> _Shares:
        covariance = gradient @ gradient.T / gradient.shape[1]
        values, vectors = torch.linalg.eigh(covariance)
        alone = (unit @ (vectors / values.clamp(min=1.0).sqrt())).square().sum(1)
        # A candidate that is zero (a padding token's embedding) explains nothing.
        alone = alone.where(alone > 0, 1.0)
        least = _LEAST * unit.square().sum(1)
        dtype = torch.float32 if float(values[-1]) < _CLEAR else torch.float64
        return _Shares(
            unit=unit.to(dtype),
            covariance=covariance.to(dtype),
            columns=gradient.shape[1],
            price=price,
            share=(_START * (1 / alone - 1).maximum(least)).to(dtype),
        )

    def fewest(self) -> Int64[Tensor, " members"]:
        """The set of highest likelihood, less the price of naming its members, on the way from all to none; then polished."""
        live = torch.arange(len(self.unit), device=self.unit.device)
        best, highest = live[:0], -math.inf
        for step in range(_STEPS):
            value = self.improve(live)
            if len(live) <= _FULL * self.unit.shape[1] and value > highest:
                best, highest = live, value
            if not len(live) or value < highest - self.price * len(live):
                break
            if step >= _WARM_UP:
                live = self.strongest(live, min(len(live) - 1, int(_KEPT * len(live))))
        return self.polished(best)

    def polished(self, which: Tensor) -> Tensor:
        """Without those whose removal raises the likelihood, one by one."""
        value = -math.inf
        while len(which) > 1:
            for _ in range(_POLISH):
                value = self.improve(which)
            fewer = self.strongest(which, len(which) - 1)
            if self.improve(fewer) < value:
                break
            which = fewer
        return which

    def strongest(self, which: Tensor, count: int) -> Tensor:
        return which[self.share[which].argsort(descending=True)][:count]

    def improve(self, which: Tensor) -> float:
        """One step of the shares of ``which``; the likelihood before it, less the price of naming them.

        Shares may outgrow float32 on the way: then all goes on in float64. If they outgrow that too, the likelihood is −inf.
        """
        unit, share = self.unit[which], self.share[which]
        model = (unit.T * share) @ unit
        model.diagonal().add_(1.0)
        factor, failed = torch.linalg.cholesky_ex(model.double())
        if int(failed) and unit.dtype == torch.float32:
            self.unit, self.covariance, self.share = self.unit.double(), self.covariance.double(), self.share.double()
            return self.improve(which)
        if int(failed):
            return -math.inf
        inverse = torch.cholesky_inverse(factor).to(unit.dtype)
        fit = -2 * float(factor.diagonal().log().sum()) - float((inverse * self.covariance).sum())
        answered = unit @ inverse
        ratio = ((answered @ self.covariance) * answered).sum(1) / (answered * unit).sum(1).clamp(min=1e-30)
        self.share[which] = share * ratio.clamp(min=0).pow(_POWER).clamp(1.0 / _LARGEST_STEP, _LARGEST_STEP)
        return self.columns / 2 * fit - self.price * len(which)
