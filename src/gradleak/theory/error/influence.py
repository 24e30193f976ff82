"""How far a given perturbation of the update (noise, pruning, rounding) moves what the best attacker recovers,
without running an attack. Must not know which defense made the perturbation.

The attacker who matches the update exactly ends at x + dx with J dx ≈ δ, in the least-squares sense:
dx = (JᵀJ)⁻¹ Jᵀ δ, to first order in δ. A perturbation that J cannot make (Jᵀδ = 0) protects nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg, eigsh
from torch import Tensor

from gradleak.core.errors import UsageError
from gradleak.mechanics.derivatives.jacobian import Jacobian


@dataclass(frozen=True, kw_only=True, slots=True)
class Influence:
    """First-order movement of the recovered data under one perturbation of the update.

    Attributes:
        shift: dx, of the data's shape; norm: ‖dx‖, the inversion influence.
        per_record: ‖dx_b‖ of every record of the batch.
        lower: ‖Jᵀδ‖ / λ_max(JᵀJ), the published bound; needs no linear solve.
        lower_by_quotient: ‖Jᵀδ‖² / ‖JᵀJ Jᵀδ‖, which is at least ``lower`` and needs no eigenvalue either.
        largest: λ_max(JᵀJ), from above by the residual of its eigenvector.
        residual: ‖(JᵀJ + ε) dx − Jᵀδ‖ / ‖Jᵀδ‖ of the solve; iterations: of conjugate gradients.
    """

    shift: Tensor
    norm: float
    per_record: tuple[float, ...]
    lower: float
    lower_by_quotient: float
    largest: float
    residual: float
    iterations: int


def influence(
    jacobian: Jacobian,
    perturbation: Mapping[str, Tensor],
    *,
    regularization: float = 0.0,
    tolerance: float = 1e-8,
    iterations: int = 1000,
) -> Influence:
    """The inversion influence function of a perturbation δ = released − true update.

    Args:
        perturbation: by name; tensors that are missing are not perturbed.
        regularization: ε ≥ 0 in (JᵀJ + ε)⁻¹ Jᵀδ. With ε = 0 and null directions, conjugate gradients from zero give
            the least-norm dx: null directions do not move.
        tolerance: relative residual at which the solve stops; iterations: at most so many.

    Guarantees:
        ``lower`` ≤ ``lower_by_quotient`` ≤ ‖dx‖ for ε = 0 and a converged solve: with A = JᵀJ, b = Jᵀδ,
        ‖b‖² = ⟨A⁻¹b, A b⟩ ≤ ‖A⁻¹b‖ ‖A b‖ and ‖A b‖ ≤ λ_max ‖b‖. First order only: check ``residual``, and compare to
        an attack where δ is large.

    Source: arXiv 2309.13016 for dx, its regularized form and ``lower``; ``lower_by_quotient`` is ours.
    Deviations: conjugate gradients on the data's side instead of thousands of descent steps on the update's side.

    Raises:
        UsageError: for names or shapes that are not the update's, or ε < 0.
    """
    if regularization < 0:
        raise UsageError(f"The regularization must not be negative, got {regularization}.")
    pulled = jacobian.adjoint(_complete(jacobian, perturbation))
    right = pulled.detach().double().flatten().cpu().numpy()
    size = float(np.linalg.norm(right))
    largest = largest_eigenvalue(jacobian)
    if size == 0.0:
        zero = torch.zeros_like(pulled)
        records = tuple(0.0 for _ in range(jacobian.shape[0]))
        return Influence(
            shift=zero,
            norm=0.0,
            per_record=records,
            lower=0.0,
            lower_by_quotient=0.0,
            largest=largest,
            residual=0.0,
            iterations=0,
        )
    operator = _operator(jacobian, pulled, regularization)
    steps: list[int] = []
    solution, _ = cg(operator, right, rtol=tolerance, maxiter=iterations, callback=lambda _: steps.append(1))
    image = _operator(jacobian, pulled, 0.0) @ right
    shift = torch.from_numpy(solution).to(pulled).reshape(jacobian.shape)
    return Influence(
        shift=shift,
        norm=float(np.linalg.norm(solution)),
        per_record=tuple(float(length) for length in shift.flatten(1).double().norm(dim=1)),
        lower=size / largest,
        lower_by_quotient=size**2 / float(np.linalg.norm(image)),
        largest=largest,
        residual=float(np.linalg.norm(operator @ solution - right)) / size,
        iterations=len(steps),
    )


def largest_eigenvalue(jacobian: Jacobian) -> float:
    """λ_max(JᵀJ) by Lanczos, plus the residual of its eigenvector, so that it errs upward."""
    like = next(iter(jacobian.update.values()))
    if jacobian.unknowns == 1:
        return float(jacobian.normal(torch.ones(jacobian.shape, dtype=like.dtype)).sum())
    operator = _operator(jacobian, like, 0.0)
    start = np.cos(np.arange(jacobian.unknowns) * 0.7)
    values, vectors = eigsh(operator, k=1, which="LA", v0=start, tol=1e-6)  # pyright: ignore[reportArgumentType]
    residual = np.linalg.norm(operator @ vectors[:, 0] - values[0] * vectors[:, 0])
    return float(values[0] + residual)


def _operator(jacobian: Jacobian, like: Tensor, regularization: float) -> Any:
    def product(vector: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(np.ascontiguousarray(vector)).to(like).reshape(jacobian.shape)
        image = jacobian.normal(direction).detach().double().flatten().cpu().numpy()
        return image + regularization * vector.reshape(-1)

    count = jacobian.unknowns
    return LinearOperator((count, count), matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]


def _complete(jacobian: Jacobian, perturbation: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in perturbation.items():
        if name not in jacobian.update:
            raise UsageError(f"The perturbation names {name!r}, which is not part of the update.")
        if tensor.shape != jacobian.update[name].shape:
            raise UsageError(
                f"The perturbation of {name!r} has shape {tuple(tensor.shape)}, the update {tuple(jacobian.update[name].shape)}."
            )
    return {name: perturbation.get(name, torch.zeros_like(tensor)) for name, tensor in jacobian.update.items()}
