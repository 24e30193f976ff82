"""Why: the map from a private batch to what the adversary sees, as one immutable object. "No defense" is no stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from gradleak.core.batch import Batch
from gradleak.core.specs import Spec, spec_of
from gradleak.core.stage import Stage
from gradleak.core.update import Update


class Trainer(Protocol):
    """Local training: what a client computes from its batch before any defense."""

    def update(self, batch: Batch, rng: torch.Generator) -> Update: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Channel:
    """Local training followed by stages, in order.

    Raises:
        SpecError: from a stage that lacks what it must inherit from an earlier one.
    """

    trainer: Trainer
    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        bound: list[Stage] = []
        for stage in self.stages:
            bound.append(stage.bind(tuple(bound)))
        object.__setattr__(self, "stages", tuple(bound))

    def observe(self, batch: Batch, rng: torch.Generator) -> Update:
        """Runs the channel once: trains on ``batch``, then applies every stage with draws from ``rng``."""
        return self.defend(self.trainer.update(batch, rng), rng)

    def defend(self, update: Update, rng: torch.Generator) -> Update:
        """Applies the stages to an update that is already there; the trainer's result can serve several channels."""
        for stage in self.stages:
            update = stage.apply(update, rng)
        return update

    def specs(self) -> tuple[Spec, ...]:
        return tuple(spec_of(stage) for stage in self.stages)
