"""Why: the chain where a record is in a release only if its coin says so (Poisson sampling in secret). Nobody, the best attacker
included, knows which releases hold it. Must not know models.

    y_t = b_t·g_j + z·N(0, I),   b_t ~ Bernoulli(q),   t = 1 … T,   j ~ π

Every cap rests on one step: an attacker who is also told the coins does no worse. Given m releases with the record, they are
one release at noise z/√m; given none, nothing beats κ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import root_scalar  # pyright: ignore[reportMissingTypeStubs]
from scipy.stats import binom  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError
from gradleak.privacy import binomial as counts
from gradleak.privacy.accounting import reconstruction
from gradleak.privacy.bounds import bayes, instance
from gradleak.privacy.bounds.bayes import Bayes, Tally
from gradleak.privacy.bounds.candidates import Candidates, Matrix

_CELLS = 4_000_000
"""Scores held at a time: 32 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """T releases at one noise multiplier, each with the record by its own coin.

    Attributes:
        noise_multiplier: z, positive. releases: T, at least 1. rate: q in (0, 1].

    Raises:
        UsageError: for a value out of range.
    """

    noise_multiplier: float
    releases: int = 1
    rate: float = 1.0

    def __post_init__(self) -> None:
        z = self.noise_multiplier
        for name, value, holds, wanted in (
            (
                "noise_multiplier",
                z,
                z > 0 and math.isfinite(z),
                "positive: without noise every candidate is told apart",
            ),
            ("releases", self.releases, self.releases >= 1, "at least 1: a record is released at least once"),
            ("sampling_rate", self.rate, 0 < self.rate <= 1, "above 0 and at most 1"),
        ):
            if not holds:
                raise UsageError(f"{name}={value} is out of range. It must be {wanted}.")

    def told(self, certain: Callable[[float], float], *, absent: float) -> float:
        """What an attacker who is told the coins gets: Σ_m P(m)·certain(z/√m), and ``absent`` where no release has the record."""
        times = np.arange(self.releases + 1)
        weights = binom.pmf(times, self.releases, self.rate)
        found = [weights[0] * absent]
        # What is left out of the sum has less weight than rounding, and no term exceeds the largest.
        found += [
            w * certain(self.noise_multiplier / math.sqrt(m))
            for m, w in zip(times[1:], weights[1:], strict=True)
            if w > 0
        ]
        return float(sum(found))


def log_likelihoods(inner: Matrix, norms: Matrix, law: Sampling) -> Matrix:
    """log P(releases | candidate) up to what all candidates share, ``[... K]``.

        Σ_t ln(1 - q + q·exp((<y_t, g_k> - |g_k|²/2) / z²))

    Args:
        inner: ``[... T K]``, inner products of each release with each candidate, in units of C².
        norms: ``[K]``, squared norms of the candidates in units of C².
    """
    scores = (inner - norms / 2) / law.noise_multiplier**2
    if law.rate == 1.0:
        return scores.sum(-2)
    return np.logaddexp(math.log1p(-law.rate), math.log(law.rate) + scores).sum(-2)


def optimal(
    candidates: Candidates, law: Sampling, rng: np.random.Generator, *, trials: int, confidence: float
) -> Bayes:
    """Success of the Bayes-optimal decoder and leaked bits, as ``bayes.optimal``, coins unknown.

    Guarantees:
        For q = 1 it is the law of ``bayes.optimal`` at z/√T. No decoder with this prior has a higher expected success.
    """
    gram, root, norms = candidates.gram, candidates.root, candidates.gram.diagonal()
    lengths = np.sqrt(np.maximum(norms, np.finfo(np.float64).tiny))
    log_prior = np.log(candidates.prior)
    tally = Tally(candidates)
    step = max(1, _CELLS // (candidates.count * law.releases))
    for start in range(0, trials, step):
        size = min(step, trials - start)
        truth = rng.choice(candidates.count, size=size, p=candidates.prior)
        coins = rng.random((size, law.releases, 1)) < law.rate
        noise = rng.standard_normal((size, law.releases, root.shape[1])) @ root.T
        inner = coins * gram[truth][:, None, :] + law.noise_multiplier * noise
        scores = log_likelihoods(inner, norms, law) + log_prior
        tally.add(scores, inner.sum(1) / lengths, truth)
    return tally.result(confidence)


def bits_cap(candidates: Candidates, law: Sampling) -> float:
    """No attacker learns more bits: Σ_m P(m)·``bayes.bits_cap`` at z/√m."""
    return law.told(lambda z: bayes.bits_cap(candidates, z), absent=0.0)


def instance_bound(candidates: Candidates, law: Sampling) -> float:
    """A cap for this data: Σ_m P(m)·``instance.bound`` at z/√m, κ where no release holds the record."""
    return law.told(lambda z: instance.bound(candidates, z), absent=candidates.kappa)


def mechanism_bound(kappa: float, law: Sampling) -> float:
    """A cap for any data: Σ_m P(m)·Φ(Φ⁻¹(κ) + √m/z), exact for one release; more releases do better with ``accountant.success``."""
    return law.told(lambda z: reconstruction.gaussian(kappa, 1.0 / z), absent=kappa)


def multiplier_at_most(
    hits: int, trials: int, kappa: float, *, releases: int, rate: float, significance: float
) -> float:
    """The K-way audit turned into noise: the multiplier z is at most this; infinite if nothing was shown.

    Success falls as z grows, so the z whose cap is the lower Clopper-Pearson end of the success is the largest that is left.
    ε of the plan with this z (``accountant.account``) is then a lower bound on ε in the sampled Gaussian family.

    Args:
        hits: how often the record was named, of ``trials`` independent games of T releases each.
        kappa: success of the best guess without a release, in (0, 1).
        releases, rate: T and q of the claim.
        significance: the bound is wrong with at most this probability.

    Guarantees:
        Exact for T = 1; for more releases the cap tells the coins, so the bound is valid and not tight.
    """
    low = counts.lower(hits, trials, significance)

    def excess(log_z: float) -> float:
        law = Sampling(noise_multiplier=math.exp(log_z), releases=releases, rate=rate)
        return mechanism_bound(kappa, law) - low

    least, most = math.log(1e-4), math.log(1e4)
    if excess(most) >= 0:
        return math.inf
    if excess(least) < 0:
        # No multiplier of this plan allows so much: its sampling rate is not what ran.
        return 0.0
    return math.exp(float(root_scalar(excess, bracket=(least, most), method="brentq", xtol=1e-10).root))
