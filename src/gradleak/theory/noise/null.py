"""Why: a span test accepts what lies close to a subspace; how often a vector that has nothing to do with it does is a
known law, so thresholds need no tuning. For a direction that is uniform on the sphere of R^d and a space of dimension k

    ‖(I − P) z‖² / ‖z‖²  ~  Beta((d − k)/2, k/2)

hence the expected number of false positives among M candidates, and the smallest residual that M of them show.
Real embeddings are not uniform: their law is fitted by moments (``mechanics.span.fit_null``) and shown beside this one.
Must not know models.
"""

from __future__ import annotations

import math

from scipy.stats import beta

from gradleak.core.errors import SpecError


def expected_false_positives(residual: float, *, candidates: int, rank: int, width: int) -> float:
    """How many of ``candidates`` random directions fall below ``residual`` (a length, between 0 and 1)."""
    _check(rank, width)
    if rank == width:
        return float(candidates)
    return candidates * float(beta.cdf(residual**2, (width - rank) / 2, rank / 2))


def smallest_null_residual(*, candidates: int, rank: int, width: int) -> float:
    """The residual below which one of ``candidates`` random directions is expected: the margin of exactness.

    What members show by rounding must be well below it, or the span tells nothing.
    """
    _check(rank, width)
    if rank == width:
        return 0.0
    return math.sqrt(float(beta.ppf(1.0 / candidates, (width - rank) / 2, rank / 2)))


def _check(rank: int, width: int) -> None:
    if not 0 < rank <= width:
        raise SpecError(f"A subspace of rank {rank} does not fit into {width} dimensions.")
