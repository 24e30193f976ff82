"""Noise does not blur the column space of a gradient evenly. A direction either stands out of the noise or it does
not, and where is known exactly. Y = S + σ Z with S of low rank, ``rows × columns``, and singular value s:

    visible iff  s > σ (rows · columns)^¼
    then         λ = sqrt((s² + rows σ²)(s² + columns σ²)) / s                         its singular value in Y
                 cos² = (s⁴ − rows·columns σ⁴) / (s² (s² + other σ²))                  of the angle between both

where "other" is ``rows`` for the left vector (of length ``rows``) and ``columns`` for the right one. In the limit of large
matrices; at 128 and more the error is below 3 %.

Source: Benaych-Georges and Nadakuditi's form of the Baik–Ben Arous–Péché transition. Checked by simulation here.
Must not know models.

A span test accepts what lies close to a subspace; how often a vector that has nothing to do with it does is a
known law, so thresholds need no tuning. For a direction that is uniform on the sphere of R^d and a space of dimension k

    ‖(I − P) z‖² / ‖z‖²  ~  Beta((d − k)/2, k/2)

hence the expected number of false positives among M candidates, and the smallest residual that M of them show.
Real embeddings are not uniform: their law is fitted by moments (``mechanics.span.fit_null``) and shown beside this one.
Must not know models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import beta

from gradleak.core.errors import SpecError


@dataclass(frozen=True, kw_only=True, slots=True)
class Spike:
    """A singular value of a signal seen through noise.

    Attributes:
        visible: whether it stands out.
        singular: where it appears; at the edge of the noise if it is not visible.
        cosine_left, cosine_right: squared cosines between the true and the seen vectors, 0 if not visible.
    """

    visible: bool
    singular: float
    cosine_left: float
    cosine_right: float


def threshold(noise_std: float, rows: int, columns: int) -> float:
    """The singular value that is just visible."""
    if noise_std < 0 or min(rows, columns) < 1:
        raise SpecError(f"A threshold needs noise ≥ 0 and a matrix, got std {noise_std}, {rows} × {columns}.")
    return noise_std * (rows * columns) ** 0.25


def spike(singular: float, noise_std: float, rows: int, columns: int) -> Spike:
    """What becomes of a true singular value under noise of standard deviation ``noise_std`` per entry."""
    if singular <= threshold(noise_std, rows, columns) or singular == 0:
        edge = noise_std * (math.sqrt(rows) + math.sqrt(columns))
        return Spike(visible=False, singular=edge, cosine_left=0.0, cosine_right=0.0)
    s, n = singular**2, noise_std**2
    top = s * s - rows * columns * n * n
    return Spike(
        visible=True,
        singular=math.sqrt((s + rows * n) * (s + columns * n)) / singular,
        cosine_left=top / (s * (s + rows * n)),
        cosine_right=top / (s * (s + columns * n)),
    )


def dies_at(share: float, tokens: int, rows: int, columns: int) -> float:
    """The noise, in units of the norm of the whole update, at which ``tokens`` equal directions go under.

    Args:
        share: part of the update's squared norm that this matrix carries.
    """
    return math.sqrt(share / tokens) / (rows * columns) ** 0.25


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
