"""Why: interprets a plan: ε with everything it depends on, the bounds beside it, and "no guarantee" with its reason in the same
place. The privacy curve is dp-accounting's PLD, or exact where one equation is known; RDP stands beside it.

Must not know stages, models or the command line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from gradleak.privacy.accounting import closed_forms, gaussian, lower_bounds, reconstruction
from gradleak.privacy.accounting.events import describe, neighboring
from gradleak.privacy.plan.plan import Plan
from gradleak.privacy.plan.views import Release, refusal, resolve
from gradleak.privacy.plan.words import Basis, basis

_COARSE = np.concatenate([np.linspace(-20.0, 20.0, 41), np.geomspace(21.0, 700.0, 40)])
_ZOOMS, _PIECES = 4, 9
"""ε is searched on 81 points, then four times on 9 points between the neighbors of the best: to 1e-4 of the first spacing."""


_HOPELESS = 1e4
"""Where one step alone can lose so much, the loss would be cut into millions of pieces for an ε that promises nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guarantee:
    """What a plan guarantees, and on what that rests.

    Attributes:
        epsilon: infinite if there is no guarantee; then ``reason`` says why.
        delta: the δ it is stated at.
        method: how it was computed: ``exact``, ``pld``, ``rdp`` or ``pure`` (ε of Laplace noise at δ = 0).
        rdp: ε by Rényi accounting, where that exists.
        lower: an ε below which the plan is certainly not private (shuffled and fixed-size batches), else None.
        poisson: what accounting for the same plan as Poisson would print, where the batches are not Poisson.
        basis: mechanism, sensitivity, sampling, composition, relation, view, unit, in words.
        notes: what had to be assumed.
        reason: why there is no guarantee, else None.
    """

    epsilon: float
    delta: float
    method: str
    rdp: float | None
    lower: float | None
    poisson: float | None
    basis: Basis
    notes: tuple[str, ...]
    reason: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The privacy curve of a release, as two functions.

    Attributes:
        epsilon: δ ↦ ε. success: κ ↦ γ(κ), the most that any attacker can succeed; see ``privacy.reconstruction``.
    """

    method: str
    epsilon: Callable[[float], float]
    success: Callable[[float], float]


def account(plan: Plan) -> Guarantee:
    """ε of a plan at its δ. Raises nothing for a plan that was built: without a guarantee ε is infinite, with the reason."""
    reason = refusal(plan)
    if reason is not None:
        return _none(plan, reason)
    release = resolve(plan)
    found = curve(release)
    epsilon = found.epsilon(plan.delta)
    if not math.isfinite(epsilon):
        return _none(plan, "the noise is so small that ε is infinite.")
    return Guarantee(
        epsilon=epsilon,
        delta=plan.delta,
        method=found.method,
        rdp=rdp_epsilon(release, plan.delta),
        lower=_lower(release, plan.delta),
        poisson=_as_poisson(release, plan.delta),
        basis=basis(plan, release),
        notes=release.notes + _method_notes(release),
        reason=None,
    )


def _none(plan: Plan, reason: str) -> Guarantee:
    return Guarantee(
        epsilon=math.inf,
        delta=plan.delta,
        method="none",
        rdp=None,
        lower=None,
        poisson=None,
        basis=basis(plan, None),
        notes=(),
        reason=reason,
    )


def success(plan: Plan, kappa: float) -> float:
    """The most that any attacker succeeds to reconstruct the unit when guessing alone succeeds with κ; 1 without a guarantee.

    The target is present or absent, so this is add-or-remove (zero-out) whatever the plan's relation.
    """
    if refusal(plan) is not None:
        return 1.0
    # A shuffled or fixed-size release is read as known batches, where absence is a zero in the same place.
    return curve(resolve(replace(plan, relation="zero_out"))).success(kappa)


@lru_cache(maxsize=64)
def curve(release: Release) -> Curve:
    """The curve to state guarantees from: exact where known, else PLD; for shuffled and fixed batches without their sampling."""
    if release.mechanism == "gaussian" and release.sampling != "poisson":
        candidates = [_exact(_unsampled(release))]
        if release.sampling == "fixed" and (wor := rdp_curve(release)) is not None:
            candidates.append(wor)
        return _best(candidates)
    if release.mechanism == "laplace" and release.steps == 1 and release.sampling == "none":
        return _pure(release)
    found = pld_curve(release)
    if found is not None:
        return found
    return _exact(_unsampled(release)) if release.mechanism == "gaussian" else _pure(release)


def pld_curve(release: Release) -> Curve | None:
    """By dp-accounting's privacy loss distributions, rounded pessimistically; None where it has no such event."""
    event = describe(release, "pld")
    if event is None or _largest_loss(release) > _HOPELESS:
        return None
    from dp_accounting.pld import PLDAccountant

    guess = _guess(release)
    accountant = PLDAccountant(neighboring(release.relation), _interval(guess)).compose(event)

    def success(kappa: float) -> float:
        # e^ε·κ + δ(ε) is convex in e^ε, so its least value lies between the neighbors of the best point.
        grid, least = _COARSE, 1.0
        for _ in range(_ZOOMS + 1):
            values = [reconstruction.from_curve(kappa, [e], [float(accountant.get_delta(float(e)))]) for e in grid]
            best = int(np.argmin(values))
            least = min(least, values[best])
            grid = np.linspace(grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)], _PIECES)
        return least

    return Curve(method="pld", epsilon=lru_cache(lambda d: float(accountant.get_epsilon(d))), success=success)


@lru_cache(maxsize=64)
def rdp_curve(release: Release) -> Curve | None:
    """By dp-accounting's Rényi accountant; None where it has no such event."""
    event = describe(release, "rdp")
    if event is None:
        return None
    from dp_accounting.rdp import RdpAccountant

    with _quiet():
        accountant = RdpAccountant(neighboring_relation=neighboring(release.relation)).compose(event)

    def epsilon(delta: float) -> float:
        with _quiet():
            return float(accountant.get_epsilon(delta))

    def success(kappa: float) -> float:
        deltas = np.geomspace(1e-12, 0.5, 60)
        return min(reconstruction.approximate(kappa, epsilon(float(d)), float(d)) for d in deltas)

    return Curve(method="rdp", epsilon=epsilon, success=success)


def rdp_epsilon(release: Release, delta: float) -> float | None:
    """ε by Rényi accounting, the shuffled epoch read without its sampling; None where there is no such rule."""
    found = rdp_curve(_unsampled(release) if release.sampling == "shuffle" else release)
    return None if found is None else found.epsilon(delta)


def _exact(release: Release) -> Curve:
    distance = (2.0 if release.relation == "replace_one" else 1.0) * release.group
    mu = closed_forms.composed_mu([(p.noise_multiplier / distance, p.steps) for p in release.phases])

    def success(kappa: float) -> float:
        return reconstruction.gaussian(kappa, mu)

    return Curve(method="exact", epsilon=lambda delta: gaussian.epsilon(1.0 / mu, delta), success=success)


def _pure(release: Release) -> Curve:
    distance = (2.0 if release.relation == "replace_one" else 1.0) * release.group
    epsilon = sum(p.steps * distance / p.noise_multiplier for p in release.phases)

    def success(kappa: float) -> float:
        if release.steps == 1:
            return reconstruction.laplace(kappa, epsilon)
        return reconstruction.approximate(kappa, epsilon, 0.0)

    return Curve(method="pure", epsilon=lambda delta: epsilon, success=success)


def _best(curves: list[Curve]) -> Curve:
    """Every curve is a valid guarantee, so the least value at each point is one."""
    if len(curves) == 1:
        return curves[0]

    def epsilon(delta: float) -> float:
        return min(c.epsilon(delta) for c in curves)

    def success(kappa: float) -> float:
        return min(c.success(kappa) for c in curves)

    return Curve(method=" or ".join(c.method for c in curves), epsilon=epsilon, success=success)


def _unsampled(release: Release) -> Release:
    """The same release to an adversary who knows the batches: one Gaussian release in each step that uses the record."""
    if release.sampling in ("none", "poisson"):
        return replace(release, sampling="none", rate=1.0)
    if release.sampling == "shuffle" and len(release.phases) == 1:
        only = replace(release.phases[0], steps=release.epochs)
        return replace(release, phases=(only,), sampling="none", rate=1.0)
    return replace(release, sampling="none", rate=1.0)


def _lower(release: Release, delta: float) -> float | None:
    if release.mechanism != "gaussian" or release.group > 1:
        return None
    z = max(p.noise_multiplier for p in release.phases)
    if release.sampling == "shuffle":
        return lower_bounds.shuffle_epsilon(z, round(1 / release.rate), delta)
    if release.sampling == "fixed" and release.relation == "replace_one":
        return lower_bounds.fixed_size_epsilon(z, release.rate, release.steps, delta)
    return None


def _as_poisson(release: Release, delta: float) -> float | None:
    if release.sampling not in ("shuffle", "fixed"):
        return None
    as_if = replace(release, sampling="poisson", relation="add_or_remove")
    found = pld_curve(as_if)
    return None if found is None else found.epsilon(delta)


def _method_notes(release: Release) -> tuple[str, ...]:
    if release.sampling == "shuffle":
        return ("ε is for an adversary who knows the batches; hidden batches only help, by an unknown amount",)
    if release.sampling == "fixed":
        return ("fixed-size batches: ε is the smaller of no sampling at all and Rényi accounting without replacement",)
    if release.batch_limit is not None:
        return (f"batches longer than {release.batch_limit} are cut, so a record can push another one out",)
    return ()


def _guess(release: Release) -> float:
    """A rough ε, to choose how finely the privacy loss is cut; RDP add-or-remove is enough for that."""
    distance = (2.0 if release.relation == "replace_one" else 1.0) * release.group
    if release.mechanism == "laplace":
        return 1.0
    scaled = tuple(replace(p, noise_multiplier=p.noise_multiplier / distance) for p in release.phases)
    found = rdp_epsilon(replace(release, phases=scaled, relation="add_or_remove", group=1, batch_limit=None), 1e-5)
    return 1.0 if found is None or not math.isfinite(found) else found


def _largest_loss(release: Release) -> float:
    """The privacy loss of one step ten standard deviations out: d²/2 + 10·d at distance d in units of the noise."""
    if release.mechanism == "laplace":
        return 0.0
    d = (
        (2.0 if release.relation == "replace_one" else 1.0)
        * release.group
        / min(p.noise_multiplier for p in release.phases)
    )
    return d * d / 2 + 10 * d


def _interval(epsilon: float) -> float:
    """Width of the pieces of privacy loss. The cost is their number, ε over the width; what rounding up adds grows with the steps
    and the square of the width, so a large ε, which needs many steps, gets pieces that are finer in proportion.
    """
    return min(1e-2, max(2e-6, min(6e-5 * epsilon, 1e-3), 3e-6 * epsilon))


@contextmanager
def _quiet() -> Iterator[None]:
    """dp-accounting reports Rényi orders that did not converge; it leaves them out, which only makes ε larger."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
