"""Fed-CDP: the schedule of clips is used, and its claim composes its levels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gradleak.core.stage import Run
from gradleak.defenses.fed_cdp import FedCDP
from gradleak.privacy.accounting import gaussian
from gradleak.privacy.claim import claim

pytestmark = pytest.mark.contract

SCHEDULES = ("fixed", "linear", "staircase", "exponential", "cyclic")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("iteration", [0, 37, 99, 100, 500])
def test_the_schedule_is_used(schedule: Any, iteration: int) -> None:
    """The injected deviation at step t is σ(t)·C/n; the public code computes σ(t) and does not use it."""
    stage = FedCDP(max_norm=4.0, noise_multiplier=15.0, schedule=schedule, horizon=100)
    t = min(iteration, 99)
    expected = {
        "fixed": 15.0,
        "linear": 15 - 10.15 * t / 100,
        "staircase": 15 - 1.015 * math.floor(10 * t / 100),
        "exponential": 15 * math.exp(-1.13 * t / 100),
        "cyclic": 15 * math.cos(1.24 * t / 100),
    }[schedule]
    found = stage.aggregate({"w": torch.zeros(8, 50_000)}, iteration, rng(iteration))["w"]
    # 1 % is more than three standard deviations of the spread of 50,000 entries.
    assert float(found.std()) == pytest.approx(expected * 4.0 / 8, rel=0.01)
    assert stage.step_noise_std(8, iteration) == pytest.approx(expected * 4.0 / 8)


def test_claim_of_a_schedule_composes_its_levels() -> None:
    run = Run(steps=50, tensors=1)
    found = claim((FedCDP(max_norm=1.0, noise_multiplier=15.0, schedule="linear", horizon=50),), run=run)
    mu = math.sqrt(sum(1 / (15 - 10.15 * t / 50) ** 2 for t in range(50)))
    assert found["epsilon"] == pytest.approx(gaussian.epsilon(1 / mu, 1e-5), rel=1e-6)
