"""How large the error of a reconstruction has to be at the noise that was named: the bounds of ``error.bounds`` for a real model,
by products with the whitened Jacobian, in standard deviations of an embedding. Must not know attacks or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gradleak.mechanics.derivatives.quadrature import signs
from gradleak.theory.error.bounds import bounds_by_products
from gradleak.theory.identifiability.jacobian_spectrum import WhitenedProduct

_PROBES, _FEW = 4, 2
"""Random sign vectors, fewer where products are dear: what they disagree by is reported as the standard error."""
_MOST_STEPS = 20
"""Lanczos steps per probe, which costs as many products; fewer make the bound lower, never higher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorForecast:
    """Error of the embeddings, in standard deviations of an embedding (1 is what guessing without the update reaches).

    Attributes:
        records: that are unknown together; unknowns: their real numbers.
        low, high: bracket of the root mean squared error that a first-order attacker with a Gaussian prior around the
            truth reaches; attackers without that prior, to first order, do no better than it.
        standard_error: of ``low`` and ``high``, over probes.
        unbiased: what no unbiased attacker can beat: √(d / tr I); much weaker, and larger than 1 where the update says
            little.
        probes, steps: of the estimate.
    """

    records: int
    unknowns: int
    low: float
    high: float
    standard_error: float
    unbiased: float
    probes: int
    steps: int


def error_forecast(problem: WhitenedProduct, *, rng: torch.Generator) -> ErrorForecast:
    """The bounds at one batch, whose noise is already the unit of ``problem``."""
    x = problem.product.leaves[0].detach()
    count = _PROBES if problem.products >= _PROBES * _MOST_STEPS else _FEW
    probes = torch.stack([problem.outside(probe) for probe in signs(count, tuple(x.shape), rng, x)])
    steps = max(1, min(_MOST_STEPS, problem.products // count))
    bounds = bounds_by_products(problem, probes, unknowns=problem.unknowns, sigma=1.0, prior_std=1.0, steps=steps)
    low = math.sqrt(max(0.0, bounds.with_prior.lower))
    # Where Lanczos ran to its end both rules agree up to rounding.
    high = max(low, math.sqrt(bounds.with_prior.upper))
    return ErrorForecast(
        records=problem.batch.size,
        unknowns=problem.unknowns,
        low=low,
        high=high,
        # d√v = dv / (2 √v), at the lower end where it is largest.
        standard_error=bounds.with_prior.standard_error / (2 * low) if low > 0 else math.inf,
        unbiased=math.sqrt(bounds.fisher_trace),
        probes=count,
        steps=steps,
    )
