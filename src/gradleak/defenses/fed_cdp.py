"""Per-example noise in every local iteration of a federated client, with noise that may fall over the training. Must not
compute ε: it describes itself, the accountant decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gradleak.core.stage import Run
from gradleak.defenses._noisy import ScheduledNoise, check_schedule
from gradleak.defenses._tensors import require
from gradleak.mechanics.client.clipping import ClipExample, ClipTensor, NoisySum
from gradleak.mechanics.client.noise_schedules import Schedule, relative_noise


@dataclass(frozen=True, kw_only=True, slots=True)
class FedCDP(ScheduledNoise):
    """Clips every example's gradient and adds noise, in each local iteration, with a public noise schedule.

        gradient_t = (Σ_i clip(g_i, C) + σ(t)·C·N(0, I)) / n,   σ(t) = noise_multiplier · schedule(t / horizon)

    where t counts the client's local iterations over all rounds.

    Args:
        max_norm: C, positive.
        noise_multiplier: σ(0), at least 0.
        schedule: "fixed", "linear", "staircase", "exponential" or "cyclic"; see ``mechanics.schedules``.
        horizon: local iterations that the schedule is spread over.
        scope: what is clipped: "example" over all tensors, or each "tensor" by itself, as the public code does.

    Raises:
        SpecError: if an argument is out of range.

    Guarantees:
        A schedule fixed in advance keeps the guarantee of each iteration; they compose.
        With ``scope=tensor`` one record changes the sum by √M·C, and the claim counts the multiplier σ/√M.
        The injected standard deviation at iteration t is σ(t)·C/n, tested for every schedule.

    Source: Wei et al., arXiv 2107.01154 (Fed-CDP) and 2305.06473 (the schedules).
    Deviations: clips the whole gradient unless asked otherwise; the schedule is used (in the public code its variable is
        not); every record takes part in each iteration, so no sampling is claimed.
    """

    summary: ClassVar[str] = "Fed-CDP: per-example clip and noise in every local iteration, with a noise schedule."

    max_norm: float
    noise_multiplier: float
    schedule: Schedule = "fixed"
    horizon: int = 10_000
    scope: Literal["example", "tensor"] = "example"

    def __post_init__(self) -> None:
        check_schedule("fed_cdp", self.noise_multiplier, self.schedule, self.horizon)
        require(math.isfinite(self.max_norm) and self.max_norm > 0, "fed_cdp", "max_norm", self.max_norm, "positive")
        require(self.scope in ("example", "tensor"), "fed_cdp", "scope", self.scope, "example or tensor")

    def mechanism(self, iteration: int) -> NoisySum:
        clip = ClipExample if self.scope == "example" else ClipTensor
        sigma = self.noise_multiplier * relative_noise(self.schedule, iteration, self.horizon)
        return NoisySum(clipping=clip(max_norm=self.max_norm), noise_multiplier=sigma)

    def step_noise_std(self, batch_size: int, iteration: int = 0) -> float:
        return self.mechanism(iteration).noise_multiplier * self.max_norm / batch_size

    def describe(self, run: Run) -> Mapping[str, Any]:
        parts = [self.mechanism(run.round * run.steps + step).describe(run.tensors) for step in range(run.steps)]
        plan = {key: value for key, value in parts[0].items() if key != "noise_multiplier"}
        levels = [part["noise_multiplier"] for part in parts]
        return plan | {"noise_multipliers": levels, "steps": [1] * run.steps, "relation": "zero_out"}
