"""With Gaussian noise on the update there is a smallest mean squared error that any attacker can reach, and it can
be computed from the Jacobian before an attack is run. Must not know attacks or the private prior's samples.

    released = g(x) + N(0, σ²),   Fisher information  I = JᵀJ / σ²,   unknowns d

| bound on the mean squared error per unknown | holds for |
|---|---|
| tr(I⁻¹) / d  (Cramér–Rao; to first order also what the matching attacker reaches) | unbiased attackers |
| d / tr I  (weaker, one forward product per probe) | unbiased attackers |
| tr((E[I] + 1/τ²)⁻¹) / d  (van Trees; ``privacy.cramer_rao``) | **every** attacker, averaged over the prior |
| tr((I + 1/τ²)⁻¹) / d  at one x | what a first-order attacker with a Gaussian prior around x reaches; no bound on others |

Directions in which the update does not move (JᵀJ v = 0) make the Cramér–Rao bound infinite: no unbiased attacker
exists. They are counted, and the bound on their complement is given beside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.errors import UsageError
from gradleak.mechanics.derivatives.information import inverse_mean, mean_inverse
from gradleak.mechanics.derivatives.jacobian import Jacobian
from gradleak.mechanics.derivatives.quadrature import Product, TraceEstimate, hutchinson, inverse_trace, signs


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorBounds:
    """Bounds on the mean squared error per unknown, exact up to the rounding of one singular value decomposition.

    Attributes:
        unknowns: d; null: directions that the update does not see.
        cramer_rao: infinite if there are null directions.
        cramer_rao_seen: the same on the complement of the null directions, per direction of that complement.
        fisher_trace: d / tr I.
        with_prior: tr((I + 1/τ²)⁻¹) / d, or None without a prior.
    """

    unknowns: int
    null: int
    cramer_rao: float
    cramer_rao_seen: float
    fisher_trace: float
    with_prior: float | None

    @property
    def rmse(self) -> float:
        """σ √(tr((JᵀJ)⁻¹)/d): the error law of the matching attacker at small noise."""
        return math.sqrt(self.cramer_rao)

    @property
    def rmse_with_prior(self) -> float | None:
        return None if self.with_prior is None else math.sqrt(self.with_prior)


def exact_bounds(
    jacobian: Jacobian | Float[Tensor, "entries unknowns"],
    *,
    sigma: float,
    prior_std: float | None = None,
    rank_tolerance: float | None = None,
) -> ErrorBounds:
    """Bounds from all singular values of J; for small problems (one forward product per unknown).

    Args:
        sigma: noise per entry of the update, in the update's units. prior_std: τ, per unknown.
        rank_tolerance: relative size below which a singular value counts as null. If None, √(entries · unknowns) units
            in the last place of J's own number format.

    Raises:
        UsageError: for a σ, τ or tolerance outside its range, or a matrix that is not of floating point.
    """
    _check(sigma, prior_std)
    matrix = jacobian.dense() if isinstance(jacobian, Jacobian) else jacobian
    if not matrix.is_floating_point():
        raise UsageError(f"A rank tolerance follows from a floating-point format, and J has {matrix.dtype}.")
    if rank_tolerance is None:
        rank_tolerance = math.sqrt(matrix.numel()) * torch.finfo(matrix.dtype).eps
    if not 0 <= rank_tolerance < 1:
        raise UsageError(f"The rank tolerance is relative and must lie in [0, 1), got {rank_tolerance}.")
    values = torch.zeros(matrix.shape[1], dtype=torch.float64)
    singular = torch.linalg.svdvals(matrix.double())
    values[: len(singular)] = singular
    seen = values[values > rank_tolerance * values[0]]
    if len(seen) == 0:
        raise UsageError("J is zero: the update does not depend on the data, so there is no error to bound.")
    information = (values / sigma).square()
    per_seen = mean_inverse((seen / sigma).square())
    null = len(values) - len(seen)
    return ErrorBounds(
        unknowns=len(values),
        null=null,
        cramer_rao=math.inf if null else per_seen,
        cramer_rao_seen=per_seen,
        fisher_trace=inverse_mean(information),
        with_prior=None if prior_std is None else mean_inverse(information + prior_std**-2),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimatedBounds:
    """Bounds of a real model, from products only.

    Attributes:
        with_prior: tr((I + 1/τ²)⁻¹) / d: a bracket of the Lanczos rule and the statistical error over probes.
        fisher_trace: d / tr I; fisher_error: its standard error.
        sure: ``with_prior.lower`` minus three standard errors: below the exact value but for one in 700.
    """

    unknowns: int
    with_prior: TraceEstimate
    fisher_trace: float
    fisher_error: float

    @property
    def sure(self) -> float:
        return max(0.0, self.with_prior.lower - 3 * self.with_prior.standard_error)


def estimated_bounds(
    jacobian: Jacobian,
    *,
    sigma: float,
    prior_std: float,
    rng: torch.Generator,
    probes: int = 10,
    steps: int = 20,
    record: int | None = None,
) -> EstimatedBounds:
    """The prior form of the error and the Fisher trace by stochastic Lanczos quadrature.

    Args:
        record: only the unknowns of this record, the other records being unknown too; all if None.
        probes: random sign vectors, each new; steps: Lanczos steps per probe, one forward and one adjoint product each.

    Guarantees:
        Per probe the Gauss rule never exceeds the exact quadratic form (``quadrature.inverse_trace``), so too few steps
        make the bound lower, never higher. At small σ the bracket needs about √(condition number) steps to close.

    Raises:
        UsageError: for σ, τ, probes, steps or record outside their ranges.
    """
    _check(sigma, prior_std)
    like = next(iter(jacobian.update.values()))
    drawn = signs(probes, jacobian.shape, rng, like)
    unknowns = jacobian.unknowns
    if record is not None:
        if not 0 <= record < jacobian.shape[0]:
            raise UsageError(f"There is no record {record} in a batch of {jacobian.shape[0]}.")
        drawn = drawn * (torch.arange(jacobian.shape[0]) == record).to(like).view(-1, *[1] * (len(jacobian.shape) - 1))
        unknowns //= jacobian.shape[0]
    return bounds_by_products(jacobian.normal, drawn, unknowns=unknowns, sigma=sigma, prior_std=prior_std, steps=steps)


def bounds_by_products(
    normal: Product,
    probes: Float[Tensor, "probes ..."],
    *,
    unknowns: int,
    sigma: float,
    prior_std: float,
    steps: int,
) -> EstimatedBounds:
    """``estimated_bounds`` from v → JᵀJ v alone.

    Args:
        probes: random signs on the unknowns that are asked for, zero elsewhere; ``unknowns``: how many those are.
    """
    _check(sigma, prior_std)
    # (JᵀJ/σ² + 1/τ²)⁻¹ = σ² (JᵀJ + σ²/τ²)⁻¹: the products stay in the update's own units.
    trace = inverse_trace(normal, probes, shift=(sigma / prior_std) ** 2, steps=steps)
    per, scale = sigma**2 / unknowns, sigma**-2
    total, error = hutchinson(lambda v: float((v.double() * normal(v).double()).sum()), probes)
    return EstimatedBounds(
        unknowns=unknowns,
        with_prior=TraceEstimate(
            lower=trace.lower * per,
            upper=trace.upper * per,
            standard_error=trace.standard_error * per,
            probes=trace.probes,
            steps=trace.steps,
        ),
        fisher_trace=unknowns / (total * scale) if total > 0 else math.inf,
        fisher_error=unknowns * error / (total**2 * scale) if total > 0 else math.inf,
    )


def _check(sigma: float, prior_std: float | None) -> None:
    if not sigma > 0:
        raise UsageError(
            f"The noise per entry must be positive, got {sigma}. Without noise the error is that of rounding."
        )
    if prior_std is not None and not prior_std > 0:
        raise UsageError(f"The prior standard deviation must be positive, got {prior_std}.")
