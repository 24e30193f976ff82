"""Why: what a guarantee buys against reconstruction, as closed forms: the success of *any* attacker is at most γ(κ), where
κ is the success of the best guess without the update. Must not know channels, priors or accountants: numbers in, numbers out.

The game (Balle, Cherubin and Hayes, arXiv 2201.04845): a target is drawn from a prior, everything else is known to the
attacker, who sees the release and proposes a target. With P the release with the target and Q without,

    success ≤ γ(κ) = sup{P(E) : Q(E) ≤ κ},   κ = sup over guesses of the probability that the guess succeeds,

because P_z(E_z) ≤ γ(Q(E_z)), γ is concave, and the mean of Q(E_z) over targets is at most κ for any Q that does not depend on
the target. So P against Q is the pair of *add-or-remove*: a guarantee between any two records is more than is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtr, ndtri  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError


def gaussian(kappa: float, mu: float) -> float:
    """γ of a μ-Gaussian private release: Φ(Φ⁻¹(κ) + μ).

    Args:
        kappa: success of the best guess without the release, in [0, 1]; 1/K for one of K equally likely records.
        mu: at least 0; 1/z for one release with noise multiplier z, √T/z for T of them.

    Raises:
        UsageError: for an argument out of range.

    Guarantees:
        An upper bound on the success of any attacker, reached by some prior and mechanism (two records, antipodal).

    Source: Hayes, Mahloujifar and Balle, arXiv 2302.07225; Kaissis et al., arXiv 2307.03928.
    """
    _probability(kappa=kappa)
    _require(mu >= 0, "mu", mu, "at least 0")
    if kappa in (0.0, 1.0) or math.isinf(mu):
        return 0.0 if kappa == 0.0 else 1.0
    return float(ndtr(ndtri(kappa) + mu))


def laplace(kappa: float, epsilon: float) -> float:
    """γ of one release of the Laplace mechanism with scale 1/ε in units of the L1 sensitivity.

        γ(κ) = e^ε·κ for κ < e^-ε/2,   1 - e^-ε/(4κ) up to κ = 1/2,   1 - e^-ε·(1-κ) beyond

    Raises:
        UsageError: for an argument out of range.
    """
    _probability(kappa=kappa)
    _require(epsilon >= 0, "epsilon", epsilon, "at least 0")
    if kappa == 0.0:
        return 0.0
    if kappa < math.exp(-epsilon) / 2:
        return math.exp(epsilon) * kappa
    if kappa <= 0.5:
        return 1 - math.exp(-epsilon) / (4 * kappa)
    return 1 - math.exp(-epsilon) * (1 - kappa)


def approximate(kappa: float, epsilon: float, delta: float) -> float:
    """γ of any (ε, δ)-private release: min(1, e^ε·κ + δ, 1 - e^-ε·(1 - δ - κ)). The loosest slice; one point of the curve.

    Raises:
        UsageError: for an argument out of range.
    """
    _probability(kappa=kappa, delta=delta)
    _require(epsilon >= 0, "epsilon", epsilon, "at least 0")
    # The second form is the first with the roles of P and Q, and of E and its complement, exchanged.
    lifted = math.inf if epsilon > 700 else math.exp(epsilon) * kappa + delta
    return max(0.0, min(1.0, lifted, 1 - math.exp(-epsilon) * (1 - delta - kappa)))


def renyi(kappa: float, order: float, epsilon: float) -> float:
    """γ of an (α, ε_α)-Rényi private release: min(1, (κ·e^{ε_α})^{(α-1)/α}).

    By Hölder: P(E) = E_Q[(P/Q)·1_E] ≤ E_Q[(P/Q)^α]^{1/α}·Q(E)^{(α-1)/α}.

    Args:
        order: α, above 1.
        epsilon: ε_α, at least 0.

    Raises:
        UsageError: for an argument out of range.
    """
    _probability(kappa=kappa)
    _require(order > 1 and math.isfinite(order), "order", order, "above 1 and finite")
    _require(epsilon >= 0, "epsilon", epsilon, "at least 0")
    if kappa == 0.0:
        return 0.0
    return min(1.0, math.exp(min(0.0, (order - 1) / order * (math.log(kappa) + epsilon))))


def from_curve(kappa: float, epsilons: Sequence[float], deltas: Sequence[float]) -> float:
    """γ of a release whose privacy curve is known at some points: min over the points of e^ε·κ + δ(ε).

    Args:
        kappa: in [0, 1].
        epsilons: any real numbers, negative ones included (they matter for κ above about 0.3).
        deltas: δ(ε) = sup over E of P(E) - e^ε·Q(E) at each, or an upper bound of it.

    Guarantees:
        Every point gives an upper bound, so a coarse grid errs upwards only.

    Raises:
        UsageError: for an argument out of range or lists of different lengths.
    """
    _probability(kappa=kappa)
    _require(
        len(epsilons) == len(deltas) and len(epsilons) > 0, "deltas", len(deltas), "as many as the epsilons, not none"
    )
    # Beyond e^700 a point says nothing for any κ that a float can hold apart from 0.
    lifted = kappa * np.exp(np.minimum(epsilons, 700.0)) + np.asarray(deltas, dtype=float)
    return float(min(1.0, lifted.min()))


def mu_for(kappa: float, probability: float) -> float:
    """The largest μ at which no attacker succeeds more often than ``probability``: Φ⁻¹(p) - Φ⁻¹(κ), the inverse of ``gaussian``.

    Args:
        kappa: in (0, 1).
        probability: in [κ, 1). Below κ there is nothing to find: guessing alone does better.

    Raises:
        UsageError: for an argument out of range; a probability below κ is named as such.
    """
    _require(0 < kappa < 1, "kappa", kappa, "between 0 and 1")
    _require(0 < probability < 1, "probability", probability, "between 0 and 1")
    if probability < kappa * (1 - 1e-12):
        raise UsageError(
            f"A success of at most {probability:g} cannot be had: guessing without the update succeeds with {kappa:g}. "
            f"Ask for at least {kappa:g}, or for a secret with more candidates."
        )
    return max(0.0, float(ndtri(probability) - ndtri(kappa)))


def _probability(**values: float) -> None:
    for name, value in values.items():
        _require(0 <= value <= 1, name, value, "a probability")


def _require(holds: bool, name: str, value: float, wanted: str) -> None:
    if not holds:
        raise UsageError(f"{name}={value} is out of range. {name} must be {wanted}.")
