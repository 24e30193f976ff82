"""The mean squared error per unknown follows from the eigenvalues of Fisher information, whether they come from the
singular values of a Jacobian (``theory``) or from matrices (``privacy``). Must not know where they come from.

    I = JᵀJ / σ²,  eigenvalues λ_i = (s_i / σ)²;   tr(I⁻¹)/d = mean 1/λ_i  ≥  d / tr I = 1 / mean λ_i   (Cauchy and Schwarz)
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def mean_inverse(eigenvalues: ArrayLike) -> float:
    """tr(I⁻¹) / d: Cramér and Rao's bound, and with a prior's precision added to I its form for that prior; ∞ at a zero."""
    values = np.asarray(eigenvalues, dtype=np.float64)
    return float((1.0 / values).mean()) if bool((values > 0).all()) else math.inf


def inverse_mean(eigenvalues: ArrayLike) -> float:
    """d / tr I: the Fisher trace bound, never above ``mean_inverse``; the diagonal of I does as well as its eigenvalues.

    Source: arXiv 2201.12383.
    """
    mean = float(np.asarray(eigenvalues, dtype=np.float64).mean())
    return 1.0 / mean if mean > 0 else math.inf
