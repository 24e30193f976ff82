"""Why: a mechanism is held against what it *should* let through for this data, not against the worst case of any data. For
secrets whose gradients lie close together the worst case is met long after the noise has gone missing.
Must not know how releases are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from scipy.stats import hypergeom  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError
from gradleak.privacy import binomial as counts
from gradleak.privacy.accounting import reconstruction
from gradleak.privacy.auditing import lower_bounds as auditing
from gradleak.privacy.bounds.bayes import Rate

WEAK_SHARE = 0.5
"""Measured success below this share of the Bayes rate says more about the attack than about the mechanism."""


class Verdict(StrEnum):
    """What the evidence says about the claim."""

    CONSISTENT = "consistent"
    WEAK_ATTACK = "attack far from optimal"
    VIOLATION = "violation"


@dataclass(frozen=True, kw_only=True, slots=True)
class Conformance:
    """Measured success beside the success that the claimed mechanism predicts.

    Attributes:
        measured: success of the attack on releases of the real mechanism.
        predicted: Bayes rate under the claimed one; no attack can exceed it.
        p_value: how likely so large an excess is, at most, if the claim holds.
        mu_lower: lower bound on μ at ``significance``, within the Gaussian family; ``mu_claimed`` beside it.
        bound_violated: the measured success exceeds even the mechanism's bound over all data.
        verdict: violation if ``p_value`` is below ``significance``.
    """

    measured: Rate
    predicted: Rate
    p_value: float
    mu_lower: float
    mu_claimed: float
    bound_violated: bool
    significance: float
    verdict: Verdict


def conform(
    hits: int, trials: int, predicted: Rate, *, kappa: float, mu_claimed: float, significance: float = 0.05
) -> Conformance:
    """Tests whether ``hits`` of ``trials`` releases exceed what the claimed mechanism allows the best attacker.

    Both rates were counted, so Fisher's exact test compares them: given the total number of hits, those of the attack are
    hypergeometric if both rates are equal, and fewer if the attack's is smaller.

    Args:
        hits: right names among ``trials`` independent releases with the candidates drawn from the prior.
        predicted: the Bayes rate of the claimed mechanism for the same candidates, simulated independently.
        kappa: success of the best guess without a release.
        mu_claimed: √T/z of the claim.
        significance: in (0, 1).

    Raises:
        UsageError: for counts that cannot be or a number out of range.

    Guarantees:
        If the claim holds, whatever the attack, the verdict is a violation with probability at most ``significance``.
    """
    low = counts.lower(hits, trials, significance)
    if not mu_claimed > 0:
        raise UsageError(f"mu_claimed={mu_claimed} is out of range. It must be positive: the square root of T over z.")
    total = trials + predicted.trials
    p_value = float(hypergeom.sf(hits - 1, total, hits + predicted.hits, trials))
    measured = Rate.of(hits, trials, predicted.confidence)
    weak = measured.high < WEAK_SHARE * predicted.low
    calm = Verdict.WEAK_ATTACK if weak else Verdict.CONSISTENT
    return Conformance(
        measured=measured,
        predicted=predicted,
        p_value=p_value,
        mu_lower=auditing.reconstruction_mu(hits, trials, kappa, significance=significance),
        mu_claimed=mu_claimed,
        bound_violated=low > reconstruction.gaussian(kappa, mu_claimed),
        significance=significance,
        verdict=Verdict.VIOLATION if p_value < significance else calm,
    )
