"""Why: the best that *anyone* could recover from a release, so that an attack's failure is not read as safety.
Must not know models, attacks or where the candidates come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad  # pyright: ignore[reportMissingTypeStubs]
from scipy.special import log_ndtr, logsumexp, rel_entr  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError
from gradleak.privacy import binomial as counts
from gradleak.privacy.bounds.candidates import Candidates, Matrix

TRIALS = 20_000
_CELLS = 4_000_000
"""Scores held at a time: 32 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """How often a decoder names the right candidate, with its exact interval.

    Attributes:
        hits, trials: what was counted.
        low, high: Clopper-Pearson at ``confidence``.
    """

    hits: int
    trials: int
    confidence: float
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.hits / self.trials

    @staticmethod
    def of(hits: int, trials: int, confidence: float) -> Rate:
        low, high = counts.interval(hits, trials, confidence)
        return Rate(hits=hits, trials=trials, confidence=confidence, low=low, high=high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bayes:
    """What the optimal adversary achieves against one release.

    Attributes:
        success: how often its best guess is right.
        bits: information that the release carries about the record, in bits; at most the prior's entropy.
        bits_error: standard error of ``bits``.
        matched: success of the plain attack beside it: the candidate of the largest cosine with the release, on the
            same draws. It needs no noise level, no prior and no norms.
    """

    success: Rate
    bits: float
    bits_error: float
    matched: Rate


class Tally:
    """Counts draws of a decoder until it is asked for rates and bits."""

    def __init__(self, candidates: Candidates) -> None:
        self._prior = candidates.prior
        self._hits = self._matched = 0
        self._nats: list[Matrix] = []

    def add(self, scores: Matrix, matches: Matrix, truth: NDArray[np.int64]) -> None:
        """Draws whose log posteriors are ``scores`` ``[n K]`` up to a constant of each row, beside the scores of matching."""
        self._hits += int((scores.argmax(1) == truth).sum())
        self._matched += int((matches.argmax(1) == truth).sum())
        total: Matrix = np.asarray(logsumexp(scores, axis=1, keepdims=True))
        posterior = np.exp(scores - total)
        self._nats.append(rel_entr(posterior, self._prior).sum(1))

    def result(self, confidence: float) -> Bayes:
        """Over all draws so far, at least one."""
        bits = np.concatenate(self._nats) / math.log(2)
        return Bayes(
            success=Rate.of(self._hits, bits.size, confidence),
            bits=float(bits.mean()),
            bits_error=float(bits.std() / math.sqrt(bits.size)),
            matched=Rate.of(self._matched, bits.size, confidence),
        )


def optimal(
    candidates: Candidates,
    noise_multiplier: float,
    rng: np.random.Generator,
    *,
    trials: int = TRIALS,
    confidence: float = 0.99,
) -> Bayes:
    """Success of the Bayes-optimal decoder and leaked bits, by exact simulation in K dimensions.

        release      y = g_j + z n,   n ~ N(0, I_P),   j ~ π           (gradients in units of C)
        decoder      argmax_k  <y, g_k> - |g_k|²/2 + z² ln π_k
            its scores   <y, g_k> ~ N(Gram_jk, z² Gram)   jointly in k

    The scores are a sufficient statistic, so P never enters: a draw costs K numbers, not P. With the posterior q of a
    release, the leaked bits are E Σ_k q_k log₂(q_k / π_k).

    Args:
        candidates: after ``merged()``: of two equal gradients no decoder can name one.
        noise_multiplier: z, standard deviation of the noise in units of C, positive. For T releases of the same
            gradient give z / √T.
        trials: draws, at least 1.
        confidence: of the interval of the success, in (0, 1).

    Raises:
        UsageError: for an argument out of range.

    Guarantees:
        No decoder with this prior, with whatever knowledge of the model, has a higher expected success; the
        interval covers it with probability ``confidence``.
    """
    _check(noise_multiplier, trials)
    gram, root, z = candidates.gram, candidates.root, noise_multiplier
    norms = gram.diagonal()
    offset = np.log(candidates.prior) - norms / (2 * z * z)
    lengths = np.sqrt(np.maximum(norms, np.finfo(np.float64).tiny))
    tally = Tally(candidates)
    step = max(1, _CELLS // candidates.count)
    for start in range(0, trials, step):
        size = min(step, trials - start)
        truth = rng.choice(candidates.count, size=size, p=candidates.prior)
        inner = gram[truth] + z * rng.standard_normal((size, root.shape[1])) @ root.T
        scores = inner / (z * z) + offset
        tally.add(scores, inner / lengths, truth)
    return tally.result(confidence)


def bits_cap(candidates: Candidates, noise_multiplier: float) -> float:
    """An upper bound on the leaked bits: a Gaussian of the same covariance carries at least as much.

        I ≤ ½ Σ log₂(1 + λ_i / z²),   λ the eigenvalues of Cov_π(g) / C²

    Raises:
        UsageError: if the noise multiplier is not positive.
    """
    _check(noise_multiplier, 1)
    prior = candidates.prior
    center = np.eye(candidates.count) - np.outer(np.ones(candidates.count), prior)
    scaled = np.sqrt(prior)[:, None] * (center @ candidates.gram @ center.T) * np.sqrt(prior)[None, :]
    values = np.maximum(np.linalg.eigvalsh(scaled), 0.0)
    return min(candidates.entropy_bits, float(0.5 * np.log2(1.0 + values / noise_multiplier**2).sum()))


def fano_cap(bits: float, count: int) -> float:
    """Success of any decoder of ``count`` equally likely candidates from ``bits`` of information: (I + 1) / log₂ K."""
    if count < 2:
        return 1.0
    return min(1.0, (bits + 1.0) / math.log2(count))


def orthogonal(count: int, mu: float) -> float:
    """Bayes success among K equally likely orthogonal candidates of norm C, by quadrature.

        ∫ φ(x - μ) Φ(x)^(K-1) dx,   μ = 1/z

    Raises:
        UsageError: if ``count`` is below 1 or ``mu`` is negative.
    """
    if count < 1 or not mu >= 0:
        raise UsageError(f"Orthogonal candidates need a count of at least 1 and mu of at least 0, got {count}, {mu}.")

    def density(x: float) -> float:
        return math.exp(-((x - mu) ** 2) / 2 + (count - 1) * float(log_ndtr(x))) / math.sqrt(2 * math.pi)

    # Where the likelihood of the right candidate and the maximum of the others can both be: split for the quadrature.
    peak = math.sqrt(2 * math.log(count)) if count > 1 else 0.0
    points = sorted({mu, peak, (mu + peak) / 2})
    return float(quad(density, min(mu, 0.0) - 12, max(mu, peak) + 12, points=points, limit=400, epsabs=1e-12)[0])


def _check(noise_multiplier: float, trials: int) -> None:
    if not (noise_multiplier > 0 and math.isfinite(noise_multiplier)):
        raise UsageError(
            f"noise_multiplier={noise_multiplier} is out of range. It must be positive: without noise every candidate with a "
            "gradient of its own is recovered."
        )
    if trials < 1:
        raise UsageError(f"trials={trials} is out of range. Simulate at least one release, better {TRIALS}.")
