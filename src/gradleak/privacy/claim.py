"""A claim of privacy is a computation, and its absence is a sentence in the same place. Turns the stages of a channel into a
training plan and has it accounted for. Must not know any concrete defense: stages describe themselves (``Stage.describe``) or
are read through ``norm_bound``, ``preserves_norm_bound`` and ``gaussian_multiplier``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from gradleak.core.stage import ClientStage, DataStage, ProtocolStage, Run, Stage
from gradleak.privacy.accounting.accountant import account
from gradleak.privacy.plan.basis_text import RELATIONS, VIEWS
from gradleak.privacy.plan.file import make_plan
from gradleak.privacy.plan.plan import Phase, Plan

_ONE_RELEASE = Run()
_UNIT = "one client, all its records"


def claim(stages: tuple[Stage, ...], *, delta: float = 1e-5, run: Run = _ONE_RELEASE) -> dict[str, Any]:
    """What one release through ``stages`` guarantees, for any adversary and any knowledge.

    Two arguments are known. First, a stage may be a mechanism by itself and describe itself: clip and noise of every example's
    gradient, or of the whole update. Second, the update has a norm bound C where Gaussian noise of standard deviation z·C
    enters every entry: the Gaussian mechanism with multiplier z, whatever came before the bound. In both, what follows is
    post-processing, unless it looks at the private batch again. Of several guarantees the one with the smallest ε is
    claimed.

    Args:
        stages: the channel's stages, in order; bound or not.
        delta: the δ at which ε is stated, in (0, 1).
        run: what the local training is: steps behind the release, shared tensors.

    Returns:
        Plain data: ``epsilon`` (None = no guarantee), ``epsilon_replace`` (the unit exchanged for any other), ``delta``, and in
        words ``mechanism``, ``sensitivity``, ``sampling``, ``composition``, ``relation``, ``view``, ``unit``, ``theorem``, ``statement``;
        ``lower`` (ε is certainly not below), ``notes``.

    Raises:
        UsageError: for a δ out of range.
    """
    # Any plan will do to have δ checked.
    Plan(phases=(Phase(noise_multiplier=0.0),), delta=delta)
    accounted = [(account(plan), plan) for plan in plans_of(stages, delta=delta, run=run)]
    best, plan = min(accounted, key=lambda pair: pair[0].epsilon, default=(None, None))
    if best is None or plan is None or not math.isfinite(best.epsilon):
        reason = best.reason if best is not None and best.reason else _plain_reason(stages)
        return _nothing_claimed(reason, delta)
    exchanged = account(replace(plan, relation="replace_one")).epsilon
    return {
        "epsilon": best.epsilon,
        "epsilon_replace": exchanged if math.isfinite(exchanged) else None,
        "delta": delta,
        **asdict(best.basis),
        "lower": best.lower,
        "notes": list(best.notes),
        "statement": (
            f"ε = {best.epsilon:.4g} at δ = {delta:g} for one release: whether or not {best.basis.unit} took part changes the "
            f"probability of anything the adversary sees at most by the factor e^ε, up to δ. For an exchange of it, "
            f"ε = {exchanged:.4g}. Every further release adds to it."
        ),
    }


def plans_of(stages: tuple[Stage, ...], *, delta: float = 1e-5, run: Run = _ONE_RELEASE) -> tuple[Plan, ...]:
    """Every training plan that the stages carry out, by itself a valid description of the release; none if there is none."""
    protocol = next((place for place, stage in enumerate(stages) if isinstance(stage, ProtocolStage)), len(stages))
    plans: list[Plan] = []
    for place, stage in enumerate(stages):
        described = stage.describe(run)
        if described is not None and not _spoiled(stages, place, described):
            plans.append(_seen(described, stages, delta, run))
    multiplier, after_join = _bounded_noise(stages, protocol)
    if multiplier is not None:
        table = {"noise_multiplier": multiplier, "clip": "update", "sampled": "clients", "relation": "zero_out"}
        plans.append(_seen(table, () if after_join else stages, delta, run))
    return tuple(plans)


def _seen(described: Mapping[str, Any], stages: tuple[Stage, ...], delta: float, run: Run) -> Plan:
    """The plan as the receiver of the release sees it: one update, or the sum over clients."""
    clients = _adding_noise(described, run) if any(isinstance(stage, ProtocolStage) for stage in stages) else 1
    view = {"view": "secure_aggregation", "clients": clients} if clients > 1 else {"view": "server_sees_each_update"}
    return make_plan({**described, **view, "delta": delta})


def _adding_noise(described: Mapping[str, Any], run: Run) -> int:
    """How many clients' noise counts in full beside one unit's contribution to their average, rounded down."""
    if run.steps > 1 or not run.sizes:
        # After several steps the noises have passed through the model and no longer add up.
        return 1
    if described.get("clip") != "update":
        # Averages weighted by records are sums over examples: every client's noise has the same weight.
        return len(run.sizes)
    # Weighted by records: the largest client's update against everybody's noise.
    return sum(size**2 for size in run.sizes) // max(run.sizes) ** 2


def _spoiled(stages: tuple[Stage, ...], place: int, described: Mapping[str, Any]) -> bool:
    """True if a stage other than the describing one looks at private records in a way that its certificate does not cover."""
    mixed = described.get("clip") != "update" and any(isinstance(stage, DataStage) for stage in stages)
    return mixed or any(isinstance(stage, ClientStage) for stage in stages[place + 1 :])


def _bounded_noise(stages: tuple[Stage, ...], protocol: int) -> tuple[float | None, bool]:
    """The largest noise multiplier with a valid unit, None if there is none, and whether it entered behind the protocol."""
    best: float | None = None
    bounded = after_join = False
    for place, stage in enumerate(stages):
        multiplier = stage.gaussian_multiplier()
        if isinstance(stage, ClientStage):
            # It may bring the private batch into what was noisy before.
            best, after_join = None, False
        if multiplier is not None and bounded and (best is None or multiplier > best):
            best, after_join = multiplier, place > protocol
        bounded = stage.norm_bound() is not None or (bounded and stage.preserves_norm_bound())
    return best, after_join


def _nothing_claimed(reason: str, delta: float) -> dict[str, Any]:
    return {
        "epsilon": None,
        "epsilon_replace": None,
        "delta": delta,
        "mechanism": "none",
        "sensitivity": "unbounded or without noise",
        "sampling": "none",
        "composition": "1 release",
        "relation": RELATIONS["zero_out"],
        "view": VIEWS["server_sees_each_update"],
        "unit": _UNIT,
        "theorem": "none",
        "lower": None,
        "notes": [],
        "statement": f"no guarantee: {reason}",
    }


def _plain_reason(stages: tuple[Stage, ...]) -> str:
    if not stages:
        return "the update is shared as it is."
    described = [stage.describe(_ONE_RELEASE) for stage in stages]
    if any(words is not None for words in described):
        return (
            "another stage looks at the private records before or after the mechanism, in a way that its certificate does not "
            "cover. Leave that stage out."
        )
    if any(stage.gaussian_multiplier() is not None for stage in stages):
        return "no norm bound holds where the noise enters. Put clip(max_norm=...) directly before the noise."
    if any(stage.norm_bound() is not None for stage in stages):
        return (
            "the update's norm is bounded, but no Gaussian noise in units of that bound follows. "
            "Add gaussian(noise_multiplier=...) after the clip."
        )
    return (
        "the sensitivity of the update is not bounded, so no amount of noise has an ε. "
        "Use clip(max_norm=...)+gaussian(noise_multiplier=...), or dpsgd(max_norm=..., noise_multiplier=...)."
    )
