"""Interprets a plan: ε with everything it depends on, the bounds beside it, and "no guarantee" with its reason in the same place. Every
accountant that is valid for the plan's row of the table is asked, and the least ε is stated.

Must not know stages, models or the command line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from gradleak.core.errors import UsageError
from gradleak.privacy.accounting import closed_forms, gaussian, laplace, lower_bounds, mixtures, reconstruction
from gradleak.privacy.accounting.events import describe, neighboring
from gradleak.privacy.accounting.known_draws import energy
from gradleak.privacy.accounting.loss_distributions import LEAST_DELTA, curve_functions, least_success, orders
from gradleak.privacy.plan.basis_text import Basis, basis
from gradleak.privacy.plan.plan import Plan
from gradleak.privacy.plan.views import Release, refusal, resolve

_SMALL_DELTA = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class Guarantee:
    """What a plan guarantees, and on what that rests.

    Attributes:
        epsilon: infinite if there is no guarantee; then ``reason`` says why.
        delta: the δ it is stated at.
        method: how it was computed: ``exact``, ``pld``, ``rdp``, ``known draws`` or ``pure`` (ε of Laplace noise at δ = 0).
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
    """ε of a plan at its δ; infinite, with the reason, for a plan without a guarantee.

    Raises:
        UsageError: if no theorem of the table covers the plan; names the nearest combination that is covered.

    Guarantees:
        ε is the least of all valid upper bounds, ``lower`` never exceeds it.
    """
    reason = refusal(plan)
    if reason is not None:
        return _none(plan, reason)
    release = resolve(plan)
    epsilon, method = min((c.epsilon(plan.delta), c.method) for c in curves(release))
    if not math.isfinite(epsilon):
        return _none(plan, "the noise is so small that ε is infinite.")
    return Guarantee(
        epsilon=epsilon,
        delta=plan.delta,
        method=method,
        rdp=None if release.law == "binomial" and method != "rdp" else rdp_epsilon(release, plan.delta),
        lower=_lower(plan, release, epsilon),
        poisson=_as_poisson(plan),
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
    # Absence is a zero in the same place, for batches of any kind.
    return curve(resolve(replace(plan, relation="zero_out"))).success(kappa)


@lru_cache(maxsize=64)
def curves(release: Release) -> tuple[Curve, ...]:
    """Every curve that is valid for the release; the least value at each point is a guarantee."""
    if release.mechanism == "laplace":
        return _laplace_curves(release)
    if release.law == "full":
        return (_exact(release),)
    valid = [_known(release)]
    valid += [c for c in (pld_curve(release), _rdp_where_needed(release)) if c is not None]
    return tuple(valid)


def _rdp_where_needed(release: Release) -> Curve | None:
    """Rényi accounting where it can be the least: its integrals are slow, and a loss distribution is closer wherever it can speak."""
    if describe(release, "rdp") is not None or pld_curve(release) is None:
        return rdp_curve(release)
    valid = rdp_curve(release)
    if valid is None:
        return None
    return replace(
        valid,
        epsilon=lambda delta: valid.epsilon(delta) if delta < _SMALL_DELTA else math.inf,
        success=lambda kappa: 1.0,
    )


def curve(release: Release) -> Curve:
    """The least of all valid curves, as one."""
    valid = curves(release)
    if len(valid) == 1:
        return valid[0]

    def epsilon(delta: float) -> float:
        return min(c.epsilon(delta) for c in valid)

    def success(kappa: float) -> float:
        return min(c.success(kappa) for c in valid)

    return Curve(method=" or ".join(c.method for c in valid), epsilon=epsilon, success=success)


@lru_cache(maxsize=64)
def pld_curve(release: Release) -> Curve | None:
    """By privacy loss distributions, rounded upward; None where there is none, infinite below δ = 1e-11."""
    functions = curve_functions(release, lambda: _guess(release))
    return None if functions is None else Curve(method="pld", epsilon=functions[0], success=functions[1])


@lru_cache(maxsize=64)
def rdp_curve(release: Release) -> Curve | None:
    """By Rényi divergences: dp-accounting's where it has the event, else the integrals of the step's own pairs; None without either."""
    if release.mechanism == "laplace":
        return None
    if describe(release, "rdp") is not None:
        epsilon = _library_rdp(release)
    elif orders(release, release.phases[0]):
        epsilon = _own_rdp(release)
    else:
        return None

    def success(kappa: float) -> float:
        deltas = np.geomspace(1e-12, 0.5, 60)
        return min(reconstruction.approximate(kappa, epsilon(float(d)), float(d)) for d in deltas)

    return Curve(method="rdp", epsilon=epsilon, success=success)


def rdp_epsilon(release: Release, delta: float) -> float | None:
    """ε by Rényi accounting; None where there is no such rule."""
    valid = rdp_curve(release)
    epsilon = math.inf if valid is None else valid.epsilon(delta)
    return epsilon if math.isfinite(epsilon) else None


def _library_rdp(release: Release) -> Callable[[float], float]:
    from dp_accounting.rdp import RdpAccountant

    event = describe(release, "rdp")
    assert event is not None
    with _quiet():
        accountant = RdpAccountant(neighboring_relation=neighboring(release)).compose(event)

    def epsilon(delta: float) -> float:
        with _quiet():
            return float(accountant.get_epsilon(delta))

    return epsilon


def _own_rdp(release: Release) -> Callable[[float], float]:
    """Rényi divergences of the mixtures of one step, the larger of both orders, added up."""

    def divergence(order: float) -> float:
        return sum(p.steps * max(pair.renyi(order) for pair in orders(release, p)) for p in release.phases)

    @lru_cache(maxsize=1)
    def table() -> list[tuple[float, float]]:
        divergences = [(order, divergence(order)) for order in mixtures.ORDERS]
        return [(order, value) for order, value in divergences if math.isfinite(value)]

    def epsilon(delta: float) -> float:
        usable = table()
        if not usable:
            return math.inf
        return closed_forms.renyi_epsilon(tuple(o for o, _ in usable), tuple(v for _, v in usable), delta)

    return epsilon


def _exact(release: Release) -> Curve:
    mu = closed_forms.composed_mu([(p.noise_multiplier / release.distance, p.steps) for p in release.phases])

    def success(kappa: float) -> float:
        return reconstruction.gaussian(kappa, mu)

    return Curve(method="exact", epsilon=lambda delta: gaussian.epsilon(1.0 / mu, delta), success=success)


def _known(release: Release) -> Curve:
    law = energy(release)
    return Curve(
        method="known draws", epsilon=lru_cache(law.epsilon), success=lambda kappa: least_success(law.delta, kappa)
    )


def _laplace_curves(release: Release) -> tuple[Curve, ...]:
    pure = Curve(
        method="pure",
        epsilon=lambda delta: laplace.pure_epsilon(release),
        success=lambda kappa: laplace.success(release, kappa),
    )
    if release.law == "full" and release.steps == 1:
        return (pure,)
    if release.law != "known":
        valid = pld_curve(release)
        return (pure,) if valid is None else (pure, valid)

    def certain(of: Release, delta: float) -> float:
        return min(c.epsilon(delta) for c in curves(of))

    def epsilon(delta: float) -> float:
        return laplace.known_draws_epsilon(release, delta, certain)

    def success(kappa: float) -> float:
        return min(reconstruction.approximate(kappa, epsilon(d), d) for d in (1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2))

    return pure, Curve(method="known draws", epsilon=epsilon, success=success)


def _lower(plan: Plan, release: Release, epsilon: float) -> float | None:
    """An ε below which the plan is certainly not private, where one is known; never above ``epsilon``."""
    if release.mechanism != "gaussian" or plan.clip in ("microbatch", "batch") or release.law in ("known", "cut"):
        return None
    # Less noise in some steps, or more of them, only loses more.
    z = max(p.noise_multiplier for p in release.phases)
    exchanged = release.relation == "replace_one"
    unit = release.distance / (2.0 if exchanged else 1.0)
    if release.epoch is not None and (plan.unit == "record" or plan.clip == "update"):
        # The whole batches of the first epoch; the target is in each of them with probability q.
        whole = min(plan.steps, max(1, math.floor(1 / plan.sampling_rate * (1 + 1e-9))))
        share = min(1.0, whole * plan.sampling_rate)
        value = lower_bounds.shuffle_epsilon(z / unit, whole, plan.delta, share=share, exchanged=exchanged)
    elif release.law in ("fixed", "fixed_exchange"):
        value = lower_bounds.fixed_size_epsilon(z / unit, release.rate, release.steps, plan.delta, exchanged=exchanged)
    else:
        return None
    return min(value, epsilon)


def _as_poisson(plan: Plan) -> float | None:
    if plan.sampling not in ("shuffle", "fixed") or plan.sampling_rate == 1.0:
        return None
    as_if = replace(plan, sampling="poisson", relation="add_or_remove", last_batch=None)
    try:
        valid = pld_curve(resolve(as_if))
    except UsageError:
        return None
    return None if valid is None or not math.isfinite(valid.epsilon(plan.delta)) else valid.epsilon(plan.delta)


def _method_notes(release: Release) -> tuple[str, ...]:
    if release.epoch is not None:
        return ("ε is for an adversary who knows the batches; hidden batches only help, by an unknown amount",)
    if release.batch_limit is not None:
        return (f"batches longer than {release.batch_limit} are cut, so a record can push another one out",)
    return ()


def _guess(release: Release) -> float:
    """A rough ε, to choose how finely the privacy loss is cut; RDP of a hidden coin is enough for that."""
    if release.mechanism == "laplace":
        return 1.0
    scale = release.distance * (2.0 if release.law == "fixed" else 1.0)
    phases = tuple(replace(p, noise_multiplier=p.noise_multiplier / scale) for p in release.phases)
    law = release.law if release.law == "full" else "poisson"
    valid = rdp_curve(replace(release, phases=phases, law=law, distance=1.0, draws=1, relation="add_or_remove"))
    epsilon = math.inf if valid is None else valid.epsilon(max(1e-5, LEAST_DELTA))
    return epsilon if math.isfinite(epsilon) else 1.0


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
