"""Why: a claim of privacy is a computation, and its absence is a sentence in the same place. Must not know any concrete
defense: it reads stages through ``norm_bound``, ``preserves_norm_bound`` and ``gaussian_multiplier``.
"""

from __future__ import annotations

import math
from typing import Any

from gradleak.core.stage import Stage
from gradleak.privacy import gaussian

UNIT = "one client's whole update"
VIEW = "the server sees this update"
RELATION = "add-or-remove (the client's update is replaced by zero)"


def claim(stages: tuple[Stage, ...], *, delta: float = 1e-5) -> dict[str, Any]:
    """What one release through ``stages`` guarantees, for any adversary and any knowledge.

    Only one argument is known here: the update has a norm bound C where Gaussian noise of standard deviation z·C enters
    every entry. That is the Gaussian mechanism with multiplier z. What comes before the clip does not matter, because
    the clip bounds it; what comes after the noise is post-processing and cannot weaken the guarantee. Of several such
    noises the one with the larger multiplier counts alone, the rest is post-processing.

    Args:
        stages: the channel's stages, in order; bound or not.
        delta: the δ at which ε is stated, in (0, 1).

    Returns:
        Plain data: ``epsilon`` (None = no guarantee), ``epsilon_replace`` (between any two batches: the updates may
        differ by 2C, so the multiplier counts half), ``delta``, ``relation``, ``unit``, ``view``, ``mechanism``,
        ``statement``.

    Raises:
        UsageError: for a δ out of range.
    """
    multiplier, reason = _certified_multiplier(stages)
    epsilon = gaussian.epsilon(multiplier, delta)
    frame = {"delta": delta, "relation": RELATION, "unit": UNIT, "view": VIEW}
    if not math.isfinite(epsilon):
        return {
            "epsilon": None,
            "epsilon_replace": None,
            **frame,
            "mechanism": "none",
            "statement": f"no guarantee: {reason}",
        }
    replace = gaussian.epsilon(multiplier / 2.0, delta)
    return {
        "epsilon": epsilon,
        "epsilon_replace": replace if math.isfinite(replace) else None,
        **frame,
        "mechanism": f"Gaussian mechanism, noise multiplier {multiplier:g}, one release, no sampling",
        "statement": (
            f"ε = {epsilon:.4g} at δ = {delta:g} for one release: whether or not this client took part changes the "
            f"probability of anything the server sees at most by the factor e^ε, up to δ. Between any two batches of the "
            f"client, ε = {replace:.4g}. Every further release adds to it."
        ),
    }


def _certified_multiplier(stages: tuple[Stage, ...]) -> tuple[float, str]:
    """The largest noise multiplier with a valid unit, or 0 and why there is none."""
    best, bounded, reason = 0.0, False, _plain_reason(stages)
    for stage in stages:
        multiplier = stage.gaussian_multiplier()
        if multiplier is not None and bounded:
            best = max(best, multiplier)
            reason = "the noise multiplier is 0, or so small that ε is infinite."
        bounded = stage.norm_bound() is not None or (bounded and stage.preserves_norm_bound())
    return best, reason


def _plain_reason(stages: tuple[Stage, ...]) -> str:
    if not stages:
        return "the update is shared as it is."
    if any(stage.gaussian_multiplier() is not None for stage in stages):
        return "no norm bound holds where the noise enters. Put clip(max_norm=...) directly before the noise."
    if any(stage.norm_bound() is not None for stage in stages):
        return (
            "the update's norm is bounded, but no Gaussian noise in units of that bound follows. "
            "Add gaussian(noise_multiplier=...) after the clip."
        )
    return (
        "the sensitivity of the update is not bounded, so no amount of noise has an ε. "
        "Use clip(max_norm=...)+gaussian(noise_multiplier=...)."
    )
