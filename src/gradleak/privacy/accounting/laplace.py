"""ε of Laplace noise with an L1 clip. It never borrows a rule of Gaussian noise: it adds up by its L1 lengths, and a sum of several
clients' noise is not Laplace noise. Must not know plans.

**One axis is the worst case.** Let the sum move by v with |v|₁ = a, noise Lap(1) on every entry. Take two entries v₁ + v₂ = a; the
clamped coordinates y_i in [0, v_i] are sufficient, and the likelihood ratio is e^{2(y₁+y₂)-a}; for a shift of a along one entry it
is e^{2y-a}. Under the unshifted law y is 0 with probability ½, a with e^-a/2, and has density e^-y/2 between. The sum y₁ + y₂ is 0
with probability ¼, a with e^-a/4, has atoms at v₁ and v₂, and between density e^-y·(½ + ¼·overlap) ≥ e^-y/2. So the difference of the
two distribution functions falls from +¼ to -e^-a/4 over (0, a): one crossing. Both likelihood ratios have mean 1, hence the one of
a single axis is a mean-preserving spread, and every H_ε is larger (Blackwell). More entries follow one after the other, and
H_ε = 1 - e^{(ε-a)/2} of one axis grows with a.

**Coins.** sup_E ((1-q)·Q + q·P - e^ε·Q)(E) = q·H_{ε'}(P‖Q) with e^ε' = (e^ε - 1 + q)/q, and likewise in the other order: a coin before a
dominated pair is dominated by the coin before the dominating one.

**Several clients.** Independent noise of others that is added is post-processing: ε is at most that of one client's noise alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from gradleak.privacy.accounting import reconstruction
from gradleak.privacy.accounting.known_draws import total_draws
from gradleak.privacy.plan.plan import Phase
from gradleak.privacy.plan.views import Release


def pure_epsilon(release: Release) -> float:
    """Σ d/b over all steps and draws: ε at δ = 0."""
    return sum(p.steps * release.draws * release.distance / p.noise_multiplier for p in release.phases)


def success(release: Release, kappa: float) -> float:
    """γ(κ) of the pure guarantee; exact for one release."""
    epsilon = pure_epsilon(release)
    if release.steps == 1 and release.draws == 1:
        return reconstruction.laplace(kappa, epsilon)
    return reconstruction.approximate(kappa, epsilon, 0.0)


def known_draws_epsilon(release: Release, delta: float, epsilon_of: Callable[[Release, float], float]) -> float:
    """ε where the draws are known: as many full releases as are exceeded with probability at most δ/2, at the other half of δ.

    Args:
        epsilon_of: ε of a release of law ``full`` at some δ.
    """
    count = total_draws(release, delta / 2)
    if count == 0:
        return 0.0
    exact = count == release.steps * release.draws
    least = min(p.noise_multiplier for p in release.phases)
    certain = replace(
        release, law="full", rate=1.0, draws=1, population=None, phases=(Phase(noise_multiplier=least, steps=count),)
    )
    epsilon = epsilon_of(certain, delta if exact else delta / 2)
    return epsilon if math.isfinite(epsilon) else math.inf
