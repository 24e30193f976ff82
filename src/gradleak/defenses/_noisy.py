"""Defenses that clip every example's gradient and add noise by a schedule differ in the clip alone. Must not know any of
them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.stage import TrainingStage
from gradleak.defenses._tensors import finite_and_not_negative, require
from gradleak.mechanics.client.clipping import NoisySum
from gradleak.mechanics.client.noise_schedules import Schedule


class ScheduledNoise(TrainingStage, ABC):
    """A training stage in which every record takes part in each local iteration."""

    @abstractmethod
    def mechanism(self, iteration: int) -> NoisySum:
        """What runs and what is described at one iteration: one object."""

    def aggregate(
        self, gradients: Mapping[str, Float[Tensor, "batch ..."]], iteration: int, rng: torch.Generator
    ) -> dict[str, Tensor]:
        return self.mechanism(iteration)(gradients, _records(gradients), rng)

    def surrogate(self, gradients: Mapping[str, Float[Tensor, "batch ..."]], iteration: int) -> Mapping[str, Tensor]:
        return self.mechanism(iteration).without_noise(gradients, _records(gradients))


def check_schedule(name: str, noise_multiplier: float, schedule: Schedule, horizon: int) -> None:
    """Raises ``SpecError`` for a noise multiplier, schedule or horizon out of range."""
    known = get_args(Schedule)
    wanted = "a finite number of at least 0"
    require(finite_and_not_negative(noise_multiplier), name, "noise_multiplier", noise_multiplier, wanted)
    require(schedule in known, name, "schedule", schedule, ", ".join(known))
    require(horizon >= 1, name, "horizon", horizon, "at least 1")


def _records(gradients: Mapping[str, Tensor]) -> int:
    return next(iter(gradients.values())).shape[0]
