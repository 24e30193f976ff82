"""Why: a claim of privacy can be tested. Success beyond what the claim allows refutes it, with a stated confidence;
success below it proves nothing. Pure functions of counts; must not know what was attacked or how.

Two games, each with a bound without assumptions ("any mechanism") and one within the Gaussian family:

- *membership*: the release holds the target or not; a rule says "in". TPR, FPR.
- *K-way reconstruction*: the target is one of K; a rule names it. Success p against a prior success κ. It is the stronger
  audit at large ε: without assumptions membership can prove at most about ln n from n trials, K-way ln K.
"""

from __future__ import annotations

import math

from scipy.special import ndtri  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError
from gradleak.privacy import binomial as counts
from gradleak.privacy.accounting import gaussian


def membership_epsilon(
    true_positives: int, members: int, false_positives: int, non_members: int, *, significance: float, delta: float
) -> float:
    """A lower bound on ε of any mechanism: ln((TPR_lo - δ) / FPR_hi), at least 0.

    Args:
        true_positives: how often the rule said "in" of ``members`` releases with the target.
        false_positives: how often it did of ``non_members`` releases without it.
        significance: of the two intervals together, in (0, 1).
        delta: δ of the claim, in [0, 1).

    Raises:
        UsageError: for counts that cannot be, or a number out of range.

    Guarantees:
        For independent releases and a rule that was fixed before they were seen, the true ε at δ is smaller with
        probability at most ``significance``. A threshold that was picked on the same releases needs ``significance``
        divided by the number of thresholds.

    Source: Jagielski, Ullman and Oprea; the form of Nasr et al., arXiv 2302.07956.
    """
    _check_delta(delta)
    low = counts.lower(true_positives, members, significance / 2) - delta
    high = counts.upper(false_positives, non_members, significance / 2)
    return max(0.0, math.log(low / high)) if low > 0 else 0.0


def membership_mu(
    true_positives: int, members: int, false_positives: int, non_members: int, *, significance: float
) -> float:
    """A lower bound on μ of a Gaussian mechanism: Φ⁻¹(TPR_lo) - Φ⁻¹(FPR_hi), at least 0. Arguments as above.

    Source: Nasr et al., arXiv 2302.07956.
    """
    low = counts.lower(true_positives, members, significance / 2)
    high = counts.upper(false_positives, non_members, significance / 2)
    return _difference(low, high)


def reconstruction_epsilon(hits: int, trials: int, kappa: float, *, significance: float, delta: float) -> float:
    """A lower bound on ε of any mechanism from a K-way game: ln((p_lo - δ) / κ), at least 0.

    Any (ε, δ)-private release has success ≤ e^ε κ + δ.

    Args:
        hits: how often the record was named, of ``trials`` independent games.
        kappa: success of the best guess without the release, in (0, 1]; 1/K for K equally likely records.

    Raises, Guarantees: as ``membership_epsilon``; ε is that of add-or-remove.
    """
    _check_delta(delta)
    _check_kappa(kappa)
    low = counts.lower(hits, trials, significance) - delta
    return max(0.0, math.log(low / kappa)) if low > 0 else 0.0


def reconstruction_mu(hits: int, trials: int, kappa: float, *, significance: float) -> float:
    """A lower bound on μ of a Gaussian mechanism from a K-way game: Φ⁻¹(p_lo) - Φ⁻¹(κ), at least 0."""
    _check_kappa(kappa)
    return _difference(counts.lower(hits, trials, significance), kappa)


def epsilon_of_mu(mu: float, delta: float) -> float:
    """ε at δ of a μ-Gaussian mechanism, 0 for μ = 0. Raises ``UsageError`` if μ is negative or δ not in (0, 1)."""
    if mu < 0 or math.isnan(mu):
        raise UsageError(f"mu={mu} is out of range. It must be at least 0.")
    return gaussian.epsilon(0.0 if math.isinf(mu) else 1.0 / mu, delta) if mu > 0 else 0.0


def _difference(low: float, high: float) -> float:
    if low <= 0.0 or high >= 1.0:
        return 0.0
    return max(0.0, float(ndtri(low) - ndtri(high)))


def _check_delta(delta: float) -> None:
    if not 0.0 <= delta < 1.0:
        raise UsageError(f"delta={delta} is out of range. It must be at least 0 and below 1.")


def _check_kappa(kappa: float) -> None:
    if not 0.0 < kappa <= 1.0:
        raise UsageError(f"kappa={kappa} is out of range. It must be above 0 and at most 1, such as 1/K.")
