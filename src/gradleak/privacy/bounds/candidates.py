"""Why: an adversary with a finite list of candidates sees nothing of a Gaussian release but the inner products of their
gradients. The list, its prior and that one matrix are all that the bounds need. Must not know models or how gradients
are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradleak.core.errors import UsageError

Matrix = NDArray[np.float64]
_ROUNDING = 1e-6
"""Negative eigenvalues and norms above 1, in units of the largest entry, that are taken for rounding in float32."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """K candidate records, as the Gram matrix of their clipped gradients in units of the clip norm C.

    Attributes:
        gram: ``[K K]``, entry (j, k) = <g_j, g_k> / C²; no diagonal entry above 1.
        prior: ``[K]``, positive, sums to 1: what the adversary believes before it sees anything.

    Raises:
        UsageError: if the matrix is no Gram matrix of clipped gradients, or the prior is none.
    """

    gram: Matrix
    prior: Matrix

    def __post_init__(self) -> None:
        gram, prior = np.asarray(self.gram, dtype=np.float64), np.asarray(self.prior, dtype=np.float64)
        if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0 or prior.shape != gram.shape[:1]:
            raise UsageError(f"Candidates need a K×K Gram matrix and K prior weights, got {gram.shape}, {prior.shape}.")
        if not np.isfinite(gram).all() or not np.allclose(gram, gram.T, atol=_ROUNDING, rtol=0):
            raise UsageError("The Gram matrix must be finite and symmetric. Check the gradients for NaN.")
        if gram.diagonal().max() > 1.0 + _ROUNDING:
            raise UsageError(
                f"A candidate gradient has norm {gram.diagonal().max() ** 0.5:.6g} in units of the clip norm. Clip first: "
                "without a clip there is no sensitivity and no bound over all data."
            )
        if not (prior > 0).all() or abs(prior.sum() - 1.0) > 1e-9:
            raise UsageError(f"Prior weights must be positive and sum to 1; they sum to {prior.sum():.9g}.")
        object.__setattr__(self, "gram", (gram + gram.T) / 2)
        object.__setattr__(self, "prior", prior)

    @property
    def count(self) -> int:
        """K."""
        return self.prior.shape[0]

    @property
    def kappa(self) -> float:
        """κ: the success of the best guess without an observation."""
        return float(self.prior.max())

    @property
    def entropy_bits(self) -> float:
        """What there is to leak: the entropy of the prior, in bits."""
        return float(-(self.prior * np.log2(self.prior)).sum())

    @cached_property
    def root(self) -> Matrix:
        """R with R Rᵀ = gram, ``[K rank]``: standard normal ξ gives scores R ξ of the right covariance.

        Raises:
            UsageError: if the matrix has an eigenvalue too negative for rounding.
        """
        values, vectors = np.linalg.eigh(self.gram)
        if values[0] < -_ROUNDING * max(1.0, values[-1]) * self.count:
            raise UsageError(
                f"The Gram matrix has the eigenvalue {values[0]:.3g}; inner products cannot. Recompute it."
            )
        kept = values > 0
        return vectors[:, kept] * np.sqrt(values[kept])

    def radii(self, weights: Matrix | None = None) -> Matrix:
        """Distances |g_k - Σ w_l g_l| / C, ``[K]``; plain norms without weights."""
        norms = self.gram.diagonal()
        if weights is None:
            return np.sqrt(np.maximum(norms, 0.0))
        toward = self.gram @ weights
        return np.sqrt(np.maximum(norms - 2 * toward + weights @ toward, 0.0))

    def merged(self, resolution: float = 1e-6) -> Candidates:
        """As the first of ``grouped``."""
        return self.grouped(resolution)[0]

    def grouped(self, resolution: float = 1e-6) -> tuple[Candidates, NDArray[np.int64]]:
        """Candidates whose gradients cannot be told apart are one candidate with the sum of their weights.

        Args:
            resolution: distance in units of the clip norm up to which two gradients are the same, at least 0. What is
                within it of a candidate that is kept joins it; the first of a group is kept.

        Returns:
            The groups as candidates, and the group of each old one, ``[K]``.
        """
        norms = self.gram.diagonal()
        same = norms[:, None] + norms[None, :] - 2 * self.gram <= resolution**2
        np.fill_diagonal(same, True)
        owner = np.full(self.count, -1)
        for k in range(self.count):
            if owner[k] < 0:
                owner[same[k] & (owner < 0)] = k
        kept, group = np.unique(owner, return_inverse=True)
        weights = np.bincount(group, weights=self.prior)
        return Candidates(gram=self.gram[np.ix_(kept, kept)], prior=weights / weights.sum()), group

    @staticmethod
    def uniform(gram: Matrix) -> Candidates:
        """Each candidate as likely as any other."""
        count = np.shape(gram)[0]
        return Candidates(gram=gram, prior=np.full(count, 1.0 / max(count, 1)))
