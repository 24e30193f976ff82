"""Turns the accountant around: the least noise that reaches a target. Must not know stages, models or the command line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from gradleak.core.errors import UsageError
from gradleak.privacy.accounting.closed_forms import root
from gradleak.privacy.plan.plan import Plan
from gradleak.privacy.plan.views import refusal
from gradleak.privacy.targets.targets import Target

RELATIVE = 1e-4
"""How closely the noise multiplier is found; it is rounded up."""
_LEAST, _MOST = 1e-4, 1e6


def calibrate(plan: Plan, target: Target) -> float:
    """The factor on all noise multipliers of ``plan`` that is just enough for the target.

    Raises:
        UsageError: if no amount of noise reaches the target, with the reason.

    Guarantees:
        The target is met at the returned factor; at most 2e-4 of it is spare.
    """
    if plan.least_noise == 0:
        raise UsageError(
            "A plan with noise multiplier 0 cannot be scaled. Give any positive one to start from, such as 1."
        )
    reason = refusal(plan)
    if reason is not None:
        raise UsageError(f"No amount of noise gives this plan a guarantee: {reason}")

    def excess(factor: float) -> float:
        return target.excess(scaled(plan, factor))

    # Start where the least noisy step has multiplier 1, whatever the plan says: the target alone decides.
    low, high = _bracket(excess, 1.0 / plan.least_noise)
    tolerance = RELATIVE / 2
    factor = math.exp(root(lambda x: excess(math.exp(x)), math.log(low), math.log(high), tolerance=tolerance))
    while excess(factor) > 0:
        factor *= 1 + tolerance
    return factor


def scaled(plan: Plan, factor: float) -> Plan:
    """The plan with every noise multiplier times ``factor``."""
    return replace(plan, phases=tuple(replace(p, noise_multiplier=p.noise_multiplier * factor) for p in plan.phases))


def _bracket(excess: Callable[[float], float], start: float) -> tuple[float, float]:
    low = high = start
    if excess(start) > 0:
        while excess(high) > 0:
            low, high = high, high * 2
            if high > _MOST * start:
                raise UsageError(
                    f"Noise of {_MOST:g} times the clip norm does not reach this target. Take fewer steps or a weaker target."
                )
        return low, high
    while excess(low) <= 0:
        low, high = low / 2, low
        if low < _LEAST * start:
            raise UsageError("Hardly any noise reaches this target already. Ask for a stricter one.")
    return low, high
