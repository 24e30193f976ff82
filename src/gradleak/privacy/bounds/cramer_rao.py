"""Why: for continuous secrets (pixels, embeddings) there is no list of candidates; the mean squared error of any
reconstruction is bounded from below by Fisher information. Takes matrices; must not know models or Jacobian products.

    y = g(x) + N(0, s² I),   J = dg/dx ``[P d]``,   I = JᵀJ / s²

Only ``van_trees`` bounds a real attacker: the others bound unbiased ones, and no attack with a prior is unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradleak.core.errors import UsageError
from gradleak.mechanics.derivatives.information import inverse_mean, mean_inverse

Matrix = NDArray[np.float64]


def fisher_information(jacobian: ArrayLike, noise_std: float) -> Matrix:
    """I = JᵀJ / s², ``[d d]``.

    Args:
        jacobian: ``[P d]``, derivative of the released update by the secret.
        noise_std: s in units of the update: noise multiplier times clip norm; positive.

    Raises:
        UsageError: if the Jacobian is no matrix or the noise is not positive.
    """
    j = np.asarray(jacobian, dtype=np.float64)
    if j.ndim != 2 or not (noise_std > 0 and math.isfinite(noise_std)):
        raise UsageError(f"Fisher information needs a matrix and noise_std > 0, got shape {j.shape}, {noise_std}.")
    return j.T @ j / noise_std**2


def trace_bound(information: ArrayLike) -> float:
    """Fisher information leakage: mean squared error per coordinate of an *unbiased* attacker ≥ d / Tr I.

    Source: arXiv 2201.12383. Never above ``cramer_rao``, by Cauchy and Schwarz.
    """
    return inverse_mean(np.diagonal(_square(information)))


def cramer_rao(information: ArrayLike, *, relative_tolerance: float = 1e-12) -> float:
    """Mean squared error per coordinate of an *unbiased* attacker ≥ Tr(I⁻¹) / d; infinite if I is singular.

    A model with LayerNorm everywhere has one direction per token that the gradient does not see (the shift along the
    all-ones vector), so this is infinite there. That no unbiased attacker exists says nothing about biased ones.
    """
    values = np.linalg.eigvalsh(_square(information))
    if values[0] <= relative_tolerance * max(values[-1], 0.0):
        return math.inf
    return mean_inverse(values)


def local_bayes(information: ArrayLike, prior_precision: ArrayLike) -> float:
    """Tr((I + I_π)⁻¹) / d: the error of the best attacker if g were linear around this point and the prior Gaussian.

    Estimated, not certified: averaged over the prior it is at least ``van_trees``, by convexity.
    """
    precision = _square(prior_precision)
    values = np.linalg.eigvalsh(_square(information) + precision)
    # No eigenvalue of the sum lies below the prior's smallest one; what does is rounding of a much larger one.
    return mean_inverse(np.maximum(values, np.linalg.eigvalsh(precision)[0]))


def van_trees(informations: Sequence[ArrayLike], prior_precision: ArrayLike) -> float:
    """Mean squared error per coordinate of *any* attacker, averaged over the prior, ≥ Tr((E[I] + I_π)⁻¹) / d.

    Args:
        informations: Fisher information at points drawn from the prior; their mean estimates E[I].
        prior_precision: I_π ``[d d]``; the inverse covariance for a Gaussian prior.

    Raises:
        UsageError: if there is no matrix, or their sizes differ.
    """
    if not informations:
        raise UsageError("van Trees' bound averages over the prior: give the Fisher information of at least one point.")
    mean = np.mean([_square(each) for each in informations], axis=0)
    return local_bayes(mean, prior_precision)


def renyi_bound(diameters: ArrayLike, renyi_epsilon_2: float) -> float:
    """Mean squared error per coordinate of an *unbiased* attacker ≥ mean_i diam_i² / (4 (e^{ε₂} - 1)).

    Args:
        diameters: ``[d]``, the range of each coordinate of the secret.
        renyi_epsilon_2: Rényi divergence of order 2 that the mechanism guarantees; μ² for a Gaussian, positive.

    Source: the Hammersley-Chapman-Robbins form of arXiv 2201.12383.
    """
    ranges = np.asarray(diameters, dtype=np.float64)
    if not renyi_epsilon_2 > 0:
        raise UsageError(f"renyi_epsilon_2={renyi_epsilon_2} is out of range. It must be positive.")
    return float((ranges**2).mean() / 4.0 / math.expm1(min(renyi_epsilon_2, 700.0)))


def _square(matrix: ArrayLike) -> Matrix:
    m = np.asarray(matrix, dtype=np.float64)
    if m.ndim != 2 or m.shape[0] != m.shape[1]:
        raise UsageError(f"Fisher information is a square matrix, got shape {m.shape}.")
    return m
