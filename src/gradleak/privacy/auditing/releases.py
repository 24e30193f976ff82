"""Is a noisy step what it claims to be? Looks at whole released vectors, with a canary and without, and tests everything that the
claim says of them: size, law and independence of the noise, the clip, the divisor. Must not know how the step is made.

The claim: every release is reference (+ the canary's clipped gradient) + z·C·N(0, I), fresh each time. Divided by z·C, what is left
after the reference is N(0, I) in all entries of all releases, so each check is an exact or conservative test of that. A membership
audit sees one number of a release and takes thousands of them to see noise times 0.9; n·P entries show it in a hundred.

The checks, r_i the residual of release i, r̂_i = r_i/|r_i|:

    noise size        Σ|r_i|² ~ χ²                                      noise too small
    entry noise       the least Σ_i r_ij² over entries j                an entry without noise
    mean              |Σ r_i|²/n ~ χ², of each world                    constant noise, another clip or divisor than claimed
    clip              the distance of both means, at most C             no clip, clip per tensor
    equal noise       the largest |<r̂_i, r_j>| over all pairs          a seed that comes again, negated noise
    serial noise      Σ_i <r̂_i, r_{i+1}>                               noise that remembers
    world             <r̂_i, r'_i> of the i-th releases of both worlds  the same noise with and without the canary
    entries           Σ_j r_ij and neighbors r_ij·r_ij+1                one draw for many entries
    law               Kolmogorov and Smirnov, entries                  bounded, heavy
    tails             the largest |r_ij|                                truncated, outliers
    lattice           how many entries are distinct                     discrete
    norms             Kolmogorov and Smirnov, |r_i|²                    noise of fixed length, a scale that drifts
    divisor           the scales of both worlds                         division by the actual batch size
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError
from gradleak.privacy.bounds.candidates import Matrix

LEAST_ENTRIES = 30
"""With fewer entries of a release two equal noises cannot be told from chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One property of the claim.

    Attributes:
        name: as in the list of the module. p_value: at most, if the claim holds.
        failed: ``p_value`` is below the significance of one check.
        message: what a failure means.
    """

    name: str
    p_value: float
    failed: bool
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseAudit:
    """All checks of a claim.

    Attributes:
        significance: a claim that holds is refuted with probability at most this, over all checks together.
        noise_ratio: measured standard deviation of the noise over the claimed one.
        sensitivity: measured distance between both worlds along the canary, in units of C.
    """

    checks: tuple[Check, ...]
    significance: float
    noise_ratio: float
    sensitivity: float

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.failed)

    @property
    def refuted(self) -> bool:
        return bool(self.failed)


def audit_releases(
    released_with: Matrix,
    released_without: Matrix,
    reference: Matrix,
    canary: Matrix,
    *,
    clip: float,
    noise_multiplier: float,
    significance: float = 0.01,
) -> ReleaseAudit:
    """Tests a claim of clipped sums with Gaussian noise on releases of one step.

    Args:
        released_with, released_without: ``[n P]`` each, sums (multiply a mean by the claimed divisor), in the order they were made.
        reference: ``[P]``, the sum of the other records' clipped gradients, computed by the auditor.
        canary: ``[P]``, its gradient, not clipped, not zero; the longer the better.
        clip: C; noise_multiplier: z of the claim; both positive.
        significance: of all checks together.

    Raises:
        UsageError: for arrays that do not fit, fewer than 2 releases of a world or fewer than 30 entries, or a number out of range.

    Guarantees:
        If the claim holds, some check fails with probability at most ``significance``. A claim that passes is not proved.
    """
    _require(released_with, released_without, reference, canary, clip, noise_multiplier, significance)
    scale = clip * noise_multiplier
    norm = float(np.linalg.norm(canary))
    clipped = canary * min(1.0, clip / norm)
    here = (np.asarray(released_with, dtype=np.float64) - reference - clipped) / scale
    gone = (np.asarray(released_without, dtype=np.float64) - reference) / scale
    both = np.concatenate([gone, here])
    measured = math.sqrt(float((both**2).mean()))
    shape = both / max(measured, 1e-300)
    p_values = {
        **_sizes(both),
        **_means(here, gone),
        **_clips(here, gone, clipped / scale, clip / scale),
        **_independence(shape, len(gone)),
        **_laws(shape),
        "divisor": _two_sided(
            float(stats.f.cdf((here**2).mean() / max((gone**2).mean(), 1e-300), here.size, gone.size))
        ),
    }
    level = significance / len(p_values)
    checks = tuple(
        Check(name=name, p_value=value, failed=value < level, message=_MESSAGES[name])
        for name, value in p_values.items()
    )
    moved = float((here.mean(0) - gone.mean(0) + clipped / scale) @ (canary / norm)) * noise_multiplier
    return ReleaseAudit(checks=checks, significance=significance, noise_ratio=measured, sensitivity=moved)


def _sizes(both: Matrix) -> dict[str, float]:
    least = float((both**2).sum(0).min())
    return {
        "noise size": float(stats.chi2.cdf(float((both**2).sum()), both.size)),
        "entry noise": min(1.0, both.shape[1] * float(stats.chi2.cdf(least, both.shape[0]))),
    }


def _means(here: Matrix, gone: Matrix) -> dict[str, float]:
    return {
        f"mean {world}": float(stats.chi2.sf(float((values.sum(0) ** 2).sum()) / len(values), values.shape[1]))
        for world, values in (("without canary", gone), ("with canary", here))
    }


def _clips(here: Matrix, gone: Matrix, moved: Matrix, reach: float) -> dict[str, float]:
    """The distance of the means, noncentral χ² at the largest distance that the clip allows."""
    spread = 1 / len(here) + 1 / len(gone)
    square = float(((here.mean(0) - gone.mean(0) + moved) ** 2).sum()) / spread
    return {"clip": float(stats.ncx2.sf(square, here.shape[1], reach**2 / spread))}


def _independence(both: Matrix, boundary: int) -> dict[str, float]:
    """Given r_i, <r̂_i, r_j> is N(0, 1) for every other release j, and independent over successive i."""
    lengths = np.linalg.norm(both, axis=1)
    units = both / np.maximum(lengths, 1e-300)[:, None]
    products = np.triu(units @ both.T, 1)
    count = len(both)
    largest = float(np.abs(products).max())
    successive = float(np.diagonal(products, 1).sum()) / math.sqrt(count - 1)
    pairs = min(boundary, count - boundary)
    across = float(products[np.arange(pairs), boundary + np.arange(pairs)].sum()) / math.sqrt(pairs)
    sums = both.sum(1) / math.sqrt(both.shape[1])
    left, right = both[:, :-1], both[:, 1:]
    neighbors = float((left * right).sum() / math.sqrt(max(float((left**2).sum()), 1e-300)))
    return {
        "equal noise": min(1.0, count * (count - 1) * float(stats.norm.sf(largest))),
        "serial noise": 2 * float(stats.norm.sf(abs(successive))),
        "same noise in both worlds": 2 * float(stats.norm.sf(abs(across))),
        "entries": min(
            1.0, 2 * min(float(stats.chi2.sf(float((sums**2).sum()), count)), 2 * float(stats.norm.sf(abs(neighbors))))
        ),
    }


def _laws(both: Matrix) -> dict[str, float]:
    """Shape only: the scale is estimated, which makes Kolmogorov and Smirnov's test conservative."""
    entries = both.ravel()
    largest = float(np.abs(entries).max())
    beyond = float(stats.norm.logcdf(-largest)) + math.log(2)
    # P(no entry beyond) and P(some entry beyond), by the same logarithm.
    none_beyond = math.exp(-entries.size * math.exp(min(beyond, 0.0)))
    distinct = np.unique(entries).size / entries.size
    norms = stats.chi2.cdf((both**2).sum(1), both.shape[1])
    return {
        "law": float(stats.kstest(entries, "norm").pvalue),
        "tails": min(
            1.0, 2 * min(none_beyond, 1 - none_beyond if none_beyond < 0.5 else entries.size * math.exp(beyond))
        ),
        "lattice": 0.0 if distinct < 0.5 else 1.0,
        "norms": float(stats.kstest(norms, "uniform").pvalue),
    }


def _two_sided(below: float) -> float:
    return 2 * min(below, 1 - below)


_MESSAGES = {
    "noise size": "the noise is smaller than claimed",
    "entry noise": "some entries are released with less noise than claimed, or none",
    "mean without canary": "the mean of the releases without the canary is not the sum of the clipped gradients: the same noise in every "
    "release, another clip, or another divisor",
    "mean with canary": "the mean of the releases with the canary is not the sum of the clipped gradients: the same noise in every "
    "release, a clip that depends on the batch, or another divisor",
    "clip": "the canary moves the release by more than C",
    "equal noise": "two releases share their noise: the difference of them has none",
    "serial noise": "the noise of a release depends on that of the release before",
    "same noise in both worlds": "releases with and without the canary share their noise",
    "entries": "the noise of different entries is not independent",
    "law": "the noise is not Gaussian",
    "tails": "the largest noise is smaller, or larger, than Gaussian noise allows: it is bounded, or heavy-tailed",
    "lattice": "the noise takes few values: it is discrete",
    "norms": "the length of the noise is not that of Gaussian noise of one scale",
    "divisor": "the scale of the release depends on whether the canary is there: division by the actual batch size, or noise that follows "
    "the data",
}


def _require(
    released_with: Matrix,
    released_without: Matrix,
    reference: Matrix,
    canary: Matrix,
    clip: float,
    noise_multiplier: float,
    significance: float,
) -> None:
    entries = np.shape(reference)
    if len(entries) != 1 or np.shape(canary) != entries or entries[0] < LEAST_ENTRIES:
        raise UsageError(
            f"An audit of releases needs a reference and a canary of the same {LEAST_ENTRIES} or more entries, got {entries} and "
            f"{np.shape(canary)}."
        )
    for name, values in (("released_with", released_with), ("released_without", released_without)):
        if np.ndim(values) != 2 or np.shape(values)[1:] != entries or len(values) < 2 or not np.isfinite(values).all():
            raise UsageError(
                f"{name} must hold two or more finite rows of {entries[0]} entries, got shape {np.shape(values)}."
            )
    if not (clip > 0 and noise_multiplier > 0 and 0 < significance < 1 and float(np.linalg.norm(canary)) > 0):
        raise UsageError(
            f"An audit of releases needs a positive clip, noise multiplier and canary and a significance between 0 and 1, got {clip}, "
            f"{noise_multiplier}, {float(np.linalg.norm(canary))}, {significance}."
        )
