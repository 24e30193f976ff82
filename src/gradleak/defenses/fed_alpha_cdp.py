"""The variant of Fed-CDP whose clipping bound follows the private data, shipped because it is published and used. Must not be
taken for differential privacy: there is no guarantee at any noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from gradleak.core.stage import Run
from gradleak.defenses._noisy import ScheduledNoise, check_schedule
from gradleak.defenses._tensors import require
from gradleak.mechanics.client.clipping import ClipLargest, NoisySum
from gradleak.mechanics.client.noise_schedules import Schedule, relative_noise


@dataclass(frozen=True, kw_only=True, slots=True)
class FedAlphaCDP(ScheduledNoise):
    """Fed-CDP with the "L2-max" sensitivity: the noise is in units of the longest gradient of the private batch.

        S = the largest ‖g_i‖ of the batch, limited to [low, high]
        gradient_t = (Σ_i clip(g_i, S) + σ(t)·S·N(0, I)) / n

    Args:
        noise_multiplier: σ(0), at least 0.
        low, high: limits of S, positive.
        schedule, horizon: as for ``fed_cdp``.

    Raises:
        SpecError: if an argument is out of range.

    Guarantees:
        No differential privacy. S is a function of the private records and sets the size of the noise, which everybody
        can estimate from the many entries of the release; the proof of the Gaussian mechanism needs a bound fixed in
        advance. The claim is "no guarantee" at every noise multiplier.

    Source: Wei et al., arXiv 2305.06473.
    Deviations: S is the maximum over examples of the whole gradient's norm; the public code takes, for each example, the
        maximum over layers.
    """

    summary: ClassVar[str] = "Fed-α-CDP: noise in units of the batch's longest gradient; data-dependent, no guarantee."

    noise_multiplier: float
    low: float = 0.1
    high: float = 32.0
    schedule: Schedule = "fixed"
    horizon: int = 10_000

    def __post_init__(self) -> None:
        check_schedule("fed_alpha_cdp", self.noise_multiplier, self.schedule, self.horizon)
        require(0 < self.low <= self.high, "fed_alpha_cdp", "low", self.low, "positive and at most high")
        require(math.isfinite(self.high), "fed_alpha_cdp", "high", self.high, "finite")

    def mechanism(self, iteration: int) -> NoisySum:
        sigma = self.noise_multiplier * relative_noise(self.schedule, iteration, self.horizon)
        return NoisySum(clipping=ClipLargest(low=self.low, high=self.high), noise_multiplier=sigma)

    def step_noise_std(self, batch_size: int, iteration: int = 0) -> float:
        # Its reader knows the limits of S only; the upper one is what an attacker must be ready for.
        return self.mechanism(iteration).noise_multiplier * self.high / batch_size

    def describe(self, run: Run) -> Mapping[str, Any]:
        first = self.mechanism(run.round * run.steps)
        return first.describe(run.tensors) | {"steps": run.steps, "relation": "zero_out"}
