"""Counting says how many numbers a gradient could fix; the singular values of its derivative in the data say how
firmly it fixes them, for this model and batch. Read by products only. Must not know attacks.

With J the derivative of the update in the embeddings of the batch, D the standard deviation of rounding and noise on every
entry of the update, and τ that of the embeddings, the singular values of

    τ D⁻¹ J

say by how many standard deviations of its own noise the update moves when the data move by one of theirs. At 1 the release
halves the variance of a Gaussian prior along that direction; well below 1 it is known no better than before, however long an
attack runs; well above 1 the error along it is the inverse, in units of τ. All to first order. Labels count as known, and
the token table's gradient is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.factored import simulate_gradients
from gradleak.mechanics.client.outer_products import FactoredMatrix, Simulated
from gradleak.mechanics.derivatives.normal_product import NormalProduct
from gradleak.mechanics.derivatives.quadrature import Spectrum, signs, spectrum
from gradleak.mechanics.subspace.frames import orthonormal_fields
from gradleak.models import Subject
from gradleak.theory.identifiability.symmetries import directions

_STEPS = 40
_FEWEST = 12
_SMALL = 128
"""Lanczos steps: at most, and at least for an answer; a problem of at most so many unknowns is followed to its end."""

_WORK = 4e10
"""Weights times tokens times steps that are spent in float64: about fifteen seconds of one core. Twice that in float32."""

_DOUBLE_UP_TO = 60_000_000
"""Parameters up to which products are taken in float64."""

_NEGLIGIBLE = 1e-5
"""Tensors below this share of the largest hold rounding only (the gradient of a key's bias is zero in exact arithmetic)."""

_LOOSE = 0.2
"""Relative distance to the nearest eigenvalue up to which a Ritz value counts as one."""


class Resolution(Enum):
    """What is known of the smallest singular value."""

    MET = "a singular value stands there; smaller ones would be few"
    AT_MOST = "not resolved: the smallest one is at most this"
    FLOOR = "not resolved: at the rounding floor of the products"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpectrum:
    """Singular values of τ D⁻¹ J, null directions taken out.

    Attributes:
        records: that were looked at, the others counting as known; unknowns: their real numbers.
        null: dimensions that the model's normalizations hide, taken out.
        floor: below it the products show rounding: from their number format, or what the null directions show if more.
        largest, smallest: singular values; the smallest is an upper bound in any case.
        resolution: what ``smallest`` is.
        cut: 1, or the floor where that is higher.
        rank_low, rank_high: bracket of the numerical rank, the number of singular values above 1. What lies between the
            floor and 1 cannot be told apart, so ``rank_high`` is trivial where the floor is higher.
        rank_error: its standard error from the one random probe; 0 where every eigenvalue was found.
        steps: of Lanczos; dtype: of the products; format: of the update, whose rounding is the noise.
    """

    records: int
    unknowns: int
    null: int
    floor: float
    largest: float
    smallest: float
    resolution: Resolution
    cut: float
    rank_low: float
    rank_high: float
    rank_error: float
    steps: int
    dtype: str
    format: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WhitenedProduct:
    """v → (τ D⁻¹ J)ᵀ (τ D⁻¹ J) v on the real tokens of the batch, with the directions ``hidden`` taken out.

    Attributes:
        batch: whose embeddings move; the first record alone where the whole batch would cost too much.
        tau: τ, the standard deviation of the rows of the token table.
        products: that the time of a prediction allows.
    """

    batch: Batch
    product: NormalProduct
    tau: float
    mask: Tensor
    hidden: Float[Tensor, "kinds batch seq model"]
    products: int

    def __call__(self, v: Tensor) -> Tensor:
        (image,) = self.product((self.outside(v),))
        return self.outside(self.tau**2 * image)

    @property
    def unknowns(self) -> int:
        """Features of the real tokens, hidden directions included."""
        return int(self.mask.sum()) * self.product.leaves[0].shape[-1]

    def outside(self, v: Tensor) -> Tensor:
        v = v * self.mask
        for unit in self.hidden:
            v = v - (v * unit).sum(-1, keepdim=True) * unit
        return v


def whitened_product(subject: Subject, batch: Batch, *, noise_std: Mapping[str, float]) -> WhitenedProduct | str:
    """The product at the embeddings of the batch, or a sentence that says why there is none.

    Args:
        noise_std: standard deviation per entry of every released tensor, rounding and noise together; positive.
    """
    weights = sum(p.numel() for n, p in subject.parameters().items() if n != subject.anatomy.token_embedding)
    dtype = torch.float64 if weights <= _DOUBLE_UP_TO else torch.float32
    budget = _WORK * (1 if dtype == torch.float64 else 2)
    if budget / (weights * int(batch.mask.sum())) < _FEWEST:
        batch = _first(batch)
    afford = int(budget / (weights * int(batch.mask.sum())))
    if afford < _FEWEST:
        return (
            f"{weights:,} weights and {int(batch.mask.sum())} tokens of one record allow {afford} products in the time of a "
            f"prediction; {_FEWEST} are needed. Ask for fewer tokens."
        )
    return _whitened(subject, batch, noise_std, dtype, afford)


def _first(batch: Batch) -> Batch:
    return replace(batch, inputs=batch.inputs[:1], mask=batch.mask[:1], labels=batch.labels[:1])


def _whitened(
    subject: Subject, batch: Batch, noise_std: Mapping[str, float], dtype: torch.dtype, products: int
) -> WhitenedProduct | str:
    table = subject.anatomy.token_embedding
    assert table is not None
    names = tuple(n for n in noise_std if n != table)
    x = subject.embed(batch.inputs).detach().to(dtype).requires_grad_()
    with torch.enable_grad():
        gradients = simulate_gradients(
            subject, names, x, subject.loss.targets(batch.labels, subject.classes).to(dtype), batch.mask, restarts=1
        )
    if gradients is None:
        return "a module of this model has no rule for gradients in factors, and dense products would be too slow."
    embeddings = subject.parameters()[table].detach().double()
    return WhitenedProduct(
        batch=batch,
        product=NormalProduct.of((x,), _in_units(gradients, noise_std)),
        tau=float(embeddings.var(0).mean().sqrt()),
        mask=batch.mask.unsqueeze(-1),
        hidden=x.new_zeros(0, *x.shape),
        products=products,
    )


def _in_units(gradients: Simulated, noise_std: Mapping[str, float]) -> Simulated:
    """The update divided by the noise of each tensor."""
    norms = {name: float(part.square().detach().sum()) ** 0.5 for name, part in gradients.items()}
    kept = [n for n, norm in norms.items() if norm > _NEGLIGIBLE * max(norms.values())]
    return {
        n: p.scaled(1 / noise_std[n]) if isinstance(p, FactoredMatrix) else p / noise_std[n]
        for n, p in gradients.items()
        if n in kept
    }


def read_spectrum(
    problem: WhitenedProduct, subject: Subject, *, null: tuple[str, ...], format: str, seed: int
) -> DataSpectrum:
    """Singular values of τ D⁻¹ J by Lanczos.

    Args:
        null: names of ``symmetries.directions`` that hold for this model.
        format: the update's number format, for the record.

    Guarantees:
        The bracket of the rank holds for the probe up to rounding (Chebyshev, Markov, Stieltjes); fewer steps widen it.
        ``smallest`` is never below the true one by more than rounding: Ritz values lie inside the spectrum.
    """
    x, batch = problem.product.leaves[0], problem.batch
    hidden = orthonormal_fields([d for n, d in directions(subject, batch.inputs).items() if n in null], x)
    rng = derive(seed, "data spectrum")
    shown = max((_along(problem, unit, rng) for unit in hidden), default=0.0)
    problem = replace(problem, hidden=hidden)
    tokens = int(batch.mask.sum())
    unknowns, gone = tokens * x.shape[-1], tokens * len(hidden)
    left = unknowns - gone
    probe = problem.outside(signs(1, tuple(x.shape), rng, x)[0])
    steps = left if left <= _SMALL else min(problem.products, _STEPS)
    ritz = spectrum(problem, probe, steps=steps)
    largest, smallest = (float(v.clamp_min(0)) ** 0.5 for v in (ritz.ritz[-1], ritz.ritz[0]))
    floor = max(shown, torch.finfo(x.dtype).eps ** 0.5 * largest)
    cut = max(1.0, floor)
    low, high, error = _count(ritz, cut**2, left)
    return DataSpectrum(
        records=batch.size,
        unknowns=unknowns,
        null=gone,
        floor=floor,
        largest=largest,
        smallest=smallest,
        resolution=_resolution(float(ritz.ritz[0]), float(ritz.residuals[0]), floor),
        cut=cut,
        rank_low=max(0.0, left - high),
        rank_high=min(float(left), max(0.0, left - low)) if cut == 1.0 else float(left),
        rank_error=error,
        steps=len(ritz.ritz),
        dtype=str(x.dtype).removeprefix("torch."),
        format=format,
    )


def _count(ritz: Spectrum, cut: float, left: int) -> tuple[float, float, float]:
    """Bracket of the number of eigenvalues below ``cut`` among ``left``, and its standard error."""
    if len(ritz.ritz) == left:
        exact = float((ritz.ritz < cut).sum())
        return exact, exact, 0.0
    low, high = ritz.below(cut)
    # A quadratic form in random signs; its variance is at most 2 c (1 − c / n), largest inside the bracket.
    count = min(max(left / 2, low), high)
    return low, high, math.sqrt(max(0.0, 2 * count * (1 - count / left)))


def _along(problem: WhitenedProduct, unit: Tensor, rng: torch.Generator) -> float:
    """What the products show along a direction that the update does not see: their rounding."""
    along = unit * torch.randn(*problem.mask.shape, generator=rng).to(unit) * problem.mask
    return float(problem(along).norm() / along.norm()) ** 0.5


def _resolution(value: float, residual: float, floor: float) -> Resolution:
    if value <= floor**2:
        return Resolution.FLOOR
    return Resolution.MET if residual <= _LOOSE * value else Resolution.AT_MOST
