"""Several readers of an update need the noise that the known stages put on one tensor, in the update's own units. Must
not know any attack or defense.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from gradleak.core.stage import Stage, TrainingStage
from gradleak.mechanics.client.trainer import ClientTrainer


def released_std(
    stages: Sequence[Stage], name: str, observed: Tensor, *, trainer: ClientTrainer | None, records: int | None
) -> float | None:
    """Standard deviation per entry of all noise that the stages are known to have added to a released tensor.

    Noise in a local step reaches a shared gradient as it is, and a delta of k steps of SGD as lr·√k times it.

    Args:
        name: of the parameter; observed: what was released of it.
        trainer: the local training; records: of the batch. None for a reader who does not know them.

    Returns:
        0 without noise; None if there is noise whose size cannot be told.
    """
    weight = None if trainer is None else trainer.subject.parameters().get(name)
    parts = [
        _of_training(stage, trainer, records) if isinstance(stage, TrainingStage) else stage.noise_std(observed, weight)
        for stage in stages
    ]
    known = [part for part in parts if part is not None]
    return math.hypot(*known) if len(known) == len(parts) else None


def _of_training(stage: TrainingStage, trainer: ClientTrainer | None, records: int | None) -> float | None:
    if trainer is None or records is None:
        return None
    local = trainer.training
    if local.share == "gradient":
        return stage.step_noise_std(records)
    steps = [stage.step_noise_std(records, step) for step in range(local.steps)]
    if local.optimizer != "sgd" or local.momentum > 0:
        return None if any(steps) else 0.0
    return local.lr * math.hypot(*steps)
