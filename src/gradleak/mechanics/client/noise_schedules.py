"""Noise that falls during training, by a rule that is fixed in advance and therefore costs no guarantee. Must not read data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

Schedule = Literal["fixed", "linear", "staircase", "exponential", "cyclic"]

_SHAPES: Mapping[str, Callable[[float], float]] = {
    "fixed": lambda x: 1.0,
    "linear": lambda x: 1.0 - 10.15 / 15.0 * x,
    "staircase": lambda x: 1.0 - 1.015 / 15.0 * math.floor(10.0 * x),
    "exponential": lambda x: math.exp(-1.13 * x),
    "cyclic": lambda x: math.cos(1.24 * x),
}


def relative_noise(schedule: Schedule, step: int, horizon: int) -> float:
    """The noise multiplier at a step in units of the first one; the last value stays beyond the horizon.

        linear 1 - .677·x, staircase 1 - .0677·⌊10x⌋, exponential e^{-1.13x}, cyclic cos(1.24x),   x = step/horizon

    Args:
        step: from 0. horizon: steps that the schedule is spread over, at least 1.

    Source: the dynamic noise scales of Fed-α-CDP, arXiv 2305.06473, as they stand in its public code, divided by their start.
    """
    # One step short of the end: the staircase would otherwise fall once more at the end of the last step.
    return _SHAPES[schedule](min(step, horizon - 1) / horizon)
