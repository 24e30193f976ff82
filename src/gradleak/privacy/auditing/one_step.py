"""Why: the claim of one noisy step, tested with a canary in it and without. Must not know how the step is made.

The released sums are compared along the canary's gradient u. With a correct clipped step the scores of the two worlds are
N(0, 1) and N(|Δ|/(z C), 1), so the audit is as tight as the number of releases allows; if the clip is forgotten, the noise
too small or the clip taken over the whole batch, they lie further apart than the claim permits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError
from gradleak.privacy.auditing import lower_bounds as auditing
from gradleak.privacy.bounds.candidates import Matrix

MOST_RELEASES = 2**40
"""No audit is that long; a plan that would need more is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepAudit:
    """Attributes:
    mu_lower: lower bound on μ; the true one is smaller with probability at most ``significance``.
    mu_claimed: 1/z of the claim.
    tightness: ``mu_lower / mu_claimed``.
    violated: the claim is refuted.
    """

    mu_lower: float
    mu_claimed: float
    significance: float

    @property
    def tightness(self) -> float:
        return self.mu_lower / self.mu_claimed

    @property
    def violated(self) -> bool:
        return self.mu_lower > self.mu_claimed


def audit_step(
    released_with: Matrix,
    released_without: Matrix,
    reference: Matrix,
    canary: Matrix,
    *,
    clip: float,
    noise_multiplier: float,
    significance: float = 0.01,
) -> StepAudit:
    """A lower bound on μ from releases of one step with and without the canary.

    The rule is fixed before any release is seen: "in" if the score along the canary exceeds half of its claimed mean, the
    most powerful threshold of a correct step at equal weight of both errors. Nothing is picked on the data, so
    nothing has to be corrected for.

    Args:
        released_with, released_without: sums of clipped gradients plus noise, ``[n P]`` each.
        reference: what the step should release without the canary and without noise, ``[P]``.
        canary: gradient of the canary, ``[P]``, not zero.
        clip: C; noise_multiplier: z of the claim; both positive.

    Raises:
        UsageError: for an argument out of range.
    """
    norm = float(np.linalg.norm(canary))
    if not (norm > 0 and clip > 0 and noise_multiplier > 0):
        raise UsageError(
            f"A step audit needs a canary of positive norm, a clip and a noise multiplier, got {norm}, {clip}, {noise_multiplier}."
        )
    threshold = min(norm, clip) / 2
    scores = [(released - reference) @ (canary / norm) for released in (released_with, released_without)]
    mu_lower = auditing.membership_mu(
        int((scores[0] > threshold).sum()),
        scores[0].size,
        int((scores[1] > threshold).sum()),
        scores[1].size,
        significance=significance,
    )
    return StepAudit(mu_lower=mu_lower, mu_claimed=1.0 / noise_multiplier, significance=significance)


def releases_needed(noise_multiplier: float, *, tightness: float = 0.95, significance: float = 0.01) -> int:
    """How many releases of each world ``audit_step`` needs to prove the share ``tightness`` of a correct claim.

    A correct step with a canary of norm ≥ C is above the threshold with probability Φ(μ/2) in one world and Φ(-μ/2) in the
    other, μ = 1/z. The bound is taken at these expected counts, and n doubled and halved until it just reaches the share.
    Roughly n grows with z²: a claim of little leakage takes many releases to confirm.

    Args:
        noise_multiplier: z of the claim, positive.
        tightness: in (0, 1); the proved μ over the claimed one.
        significance: of the audit, in (0, 1).

    Returns:
        n; about half of all audits of that length prove a little more, half a little less.

    Raises:
        UsageError: for an argument out of range, or if more than 2^40 releases would be needed.
    """
    if not (noise_multiplier > 0 and 0 < tightness < 1):
        raise UsageError(
            f"noise_multiplier={noise_multiplier} must be positive and tightness={tightness} between 0 and 1."
        )
    mu = 1.0 / noise_multiplier
    true_rate, false_rate = float(ndtr(mu / 2)), float(ndtr(-mu / 2))

    def enough(count: int) -> bool:
        hits, false_alarms = round(count * true_rate), round(count * false_rate)
        proved = auditing.membership_mu(hits, count, false_alarms, count, significance=significance)
        return proved >= tightness * mu

    high = 2
    while not enough(high):
        high *= 2
        if high > MOST_RELEASES:
            raise UsageError(f"z = {noise_multiplier} would take more than 2^40 releases. Ask for a smaller tightness.")
    low = high // 2
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
