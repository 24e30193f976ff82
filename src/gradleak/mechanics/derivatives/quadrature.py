"""Traces of functions of a matrix that is known by its products only, with an error that is bounded on the side
that matters. Must not know what the matrix means.

k Lanczos steps from v turn vᵀ f(A) v into a Gauss quadrature. For f(λ) = 1/(λ + c), c > 0, whose even derivatives are
positive and odd ones negative, the Gauss rule lies below the true value and the Gauss–Radau rule with a node at the left
end of the spectrum lies above it: every probe comes with a bracket.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.errors import UsageError

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceEstimate:
    """An estimate of a trace from random probes.

    Attributes:
        lower, upper: means over probes of the bracket of each; equal if Lanczos ran to the end.
        standard_error: of both means, over probes. Zero if the probes were a full basis.
        probes, steps: how many, and Lanczos steps per probe.
    """

    lower: float
    upper: float
    standard_error: float
    probes: int
    steps: int


def signs(count: int, shape: tuple[int, ...], rng: torch.Generator, like: Tensor) -> Tensor:
    """Independent random signs ``[count *shape]``."""
    drawn = torch.randint(0, 2, (count, *shape), generator=rng)
    return (2 * drawn - 1).to(like)


def hutchinson(quadratic: Callable[[Tensor], float], probes: Float[Tensor, "probes ..."]) -> tuple[float, float]:
    """tr A from ``quadratic`` v → vᵀ A v over random signs v, and the standard error over probes.

    Raises:
        UsageError: for fewer than two probes, which have no error.
    """
    if len(probes) < 2:
        raise UsageError("A trace estimate needs at least 2 probes to know its own error.")
    values = torch.tensor([quadratic(probe) for probe in probes], dtype=torch.float64)
    return float(values.mean()), float(values.std() / math.sqrt(len(probes)))


def inverse_trace(product: Product, probes: Float[Tensor, "probes ..."], *, shift: float, steps: int) -> TraceEstimate:
    """tr (A + shift)⁻¹ for A positive semidefinite, bracketed probe by probe.

    Args:
        product: v → A v. probes: random signs (zero outside the entries whose share of the trace is asked for).
        shift: c > 0. steps: Lanczos steps per probe; the bracket closes at about the square root of the condition number.

    Guarantees:
        For every probe lower ≤ vᵀ (A + c)⁻¹ v ≤ upper in exact arithmetic; full reorthogonalization keeps the rounding of
        the bracket at that of the products.

    Source: Golub & Meurant's Gauss and Gauss–Radau rules; the safe side for bounds of an error is shown in the tests.

    Raises:
        UsageError: unless shift > 0, steps ≥ 1 and there are two probes.
    """
    if not shift > 0 or steps < 1 or len(probes) < 2:
        raise UsageError(f"inverse_trace needs shift > 0, steps ≥ 1 and 2 probes, got {shift}, {steps}, {len(probes)}.")
    brackets = torch.tensor([_bracket(product, probe, shift, steps) for probe in probes], dtype=torch.float64)
    lower, upper = brackets.mean(0).tolist()
    error = float(brackets.std(0).max()) / math.sqrt(len(probes))
    return TraceEstimate(lower=lower, upper=upper, standard_error=error, probes=len(probes), steps=steps)


def _bracket(product: Product, probe: Tensor, shift: float, steps: int) -> tuple[float, float]:
    diagonal, off, square = lanczos(product, probe, steps)
    gauss = square * _first_entry_of_inverse(diagonal, off[:-1], shift)
    if off[-1] == 0.0:
        return gauss, gauss
    # Gauss–Radau with a node at 0: the last diagonal entry that makes the extended matrix singular there.
    extended = torch.cat((diagonal, _radau_entry(diagonal, off).reshape(1)))
    return gauss, square * _first_entry_of_inverse(extended, off, shift)


def lanczos(product: Product, start: Tensor, steps: int) -> tuple[Tensor, Tensor, float]:
    """The tridiagonal matrix of ``steps`` Lanczos steps, fully reorthogonalized, in float64.

    Returns:
        Diagonal [k], off-diagonal [k] whose last entry leads out of the space (0 if it is invariant), and ‖start‖².
    """
    square = float(start.double().square().sum())
    vector = start.double().flatten() / math.sqrt(square)
    basis = [vector]
    diagonal: list[float] = []
    off: list[float] = []
    largest = 0.0
    for _ in range(min(steps, vector.numel())):
        image = product(basis[-1].to(start.dtype).reshape(start.shape)).double().flatten()
        diagonal.append(float(image @ basis[-1]))
        largest = max(largest, float(image.norm()))
        rows = torch.stack(basis)
        for _ in range(2):
            image = image - rows.T @ (rows @ image)
        length = float(image.norm())
        if length <= 1e-13 * largest or len(basis) == vector.numel():
            off.append(0.0)
            break
        off.append(length)
        basis.append(image / length)
    return torch.tensor(diagonal, dtype=torch.float64), torch.tensor(off, dtype=torch.float64), square


@dataclass(frozen=True, kw_only=True, slots=True)
class Spectrum:
    """What one probe shows of the eigenvalues of a positive semidefinite matrix.

    Attributes:
        ritz: estimates of eigenvalues, ascending; the extreme ones lie inside the true extremes.
        residuals: of each: within this distance there is an eigenvalue.
        diagonal, off, square: of the Lanczos run.
    """

    ritz: Float[Tensor, " steps"]
    residuals: Float[Tensor, " steps"]
    diagonal: Float[Tensor, " steps"]
    off: Float[Tensor, " steps"]
    square: float

    def below(self, cut: float) -> tuple[float, float]:
        """Bracket of vᵀ 1[A < cut] v, whose expectation over sign vectors v is the number of eigenvalues below ``cut``.

        A rule with a node at ``cut`` that is exact to degree 2k separates the weight on its two sides: what the other
        nodes below carry is a lower bound, and with the node's own weight an upper one.

        Source: the Chebyshev–Markov–Stieltjes inequalities for Gauss–Radau rules.
        """
        size = len(self.diagonal)
        off, extended = self.off[:-1], self.diagonal
        if float(self.off[-1]) > 0:
            off, extended = self.off, torch.cat((self.diagonal, _radau_entry(self.diagonal, self.off, cut).reshape(1)))
        values, vectors = torch.linalg.eigh(torch.diag(extended) + torch.diag(off, 1) + torch.diag(off, -1))
        weights = self.square * vectors[0].square()
        if len(extended) == size:
            sure = float(weights[values < cut].sum())
            return sure, sure
        node = int((values - cut).abs().argmin())
        sure = float(weights[:node].sum())
        return sure, sure + float(weights[node])


def spectrum(product: Product, probe: Tensor, *, steps: int) -> Spectrum:
    """``steps`` Lanczos steps from ``probe``; fewer if they span the space."""
    diagonal, off, square = lanczos(product, probe, steps)
    values, vectors = torch.linalg.eigh(torch.diag(diagonal) + torch.diag(off[:-1], 1) + torch.diag(off[:-1], -1))
    return Spectrum(ritz=values, residuals=off[-1] * vectors[-1].abs(), diagonal=diagonal, off=off, square=square)


def _first_entry_of_inverse(diagonal: Tensor, off: Tensor, shift: float) -> float:
    """[(T + shift)⁻¹]₁₁, from eigenvalues clamped at zero: rounding must not make A indefinite."""
    matrix = torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return float((vectors[0].square() / (values.clamp_min(0.0) + shift)).sum())


def _radau_entry(diagonal: Tensor, off: Tensor, node: float = 0.0) -> Tensor:
    """node + β_k² [(T_k − node)⁻¹]_kk, with which the extended matrix has the eigenvalue ``node``."""
    matrix = torch.diag(diagonal) + torch.diag(off[:-1], 1) + torch.diag(off[:-1], -1)
    values, vectors = torch.linalg.eigh(matrix)
    tiny = 1e-14 * values.max().clamp_min(torch.finfo(torch.float64).tiny)
    # At the left end rounding must not make the matrix indefinite.
    gaps = values.clamp_min(tiny) if node == 0.0 else values - node
    gaps = torch.where(gaps.abs() < tiny, tiny, gaps)
    return node + off[-1].square() * (vectors[-1].square() / gaps).sum()
