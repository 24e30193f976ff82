"""The audit of one noisy step: tight on a correct one, and mistakes are caught."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from gradleak.core.errors import UsageError
from gradleak.privacy.auditing.canaries import SquareLoss
from gradleak.privacy.auditing.one_step import StepAudit, audit_step, releases_needed

pytestmark = pytest.mark.oracle

CLIP = 0.5


def releases(
    gradients: np.ndarray, clip: float, std: float, rng: np.random.Generator, *, count: int, per_batch: bool = False
) -> np.ndarray:
    """Noisy sums of clipped gradients; ``clip`` infinite if it was forgotten."""
    if per_batch:
        total = gradients.sum(0)
        total = total * min(1.0, clip / np.linalg.norm(total))
    else:
        total = (gradients * np.minimum(1.0, clip / np.linalg.norm(gradients, axis=1))[:, None]).sum(0)
    return total + std * rng.standard_normal((count, total.size))


@cache
def opposite_pair() -> tuple[np.ndarray, np.ndarray]:
    """The gradients of the gradient-warp trigger and of one record that points the other way."""
    weights = np.random.default_rng(0).standard_normal(10) * 0.3
    trigger = SquareLoss(weights=weights, x_bound=1.0, y_bound=1.0).gradient_warp(np.zeros(10), 1)
    return trigger.gradient, -0.6 * trigger.gradient


def audit(
    rng: np.random.Generator,
    *,
    z: float,
    count: int = 20_000,
    forgotten: bool = False,
    noise: float = 1.0,
    per_batch: bool = False,
) -> StepAudit:
    """The gradient-warp trigger beside one record of the opposite gradient: the batch in which each mistake shows most."""
    trigger, other = opposite_pair()
    clip = math.inf if forgotten else CLIP
    make = {"count": count, "per_batch": per_batch}
    std = noise * z * CLIP
    without = releases(other[None], clip, std, rng, **make)
    present = releases(np.stack([other, trigger]), clip, std, rng, **make)
    reference = other * min(1.0, clip / np.linalg.norm(other))
    return audit_step(present, without, reference, trigger, clip=CLIP, noise_multiplier=z)


@pytest.mark.parametrize("z", [0.5, 1.0, 4.0])
def test_the_audit_of_a_correct_step_is_tight(z: float) -> None:
    found = audit(np.random.default_rng(0), z=z, count=releases_needed(z))
    assert not found.violated
    assert 0.9 <= found.tightness <= 1.0


@pytest.mark.parametrize(("z", "tightness"), [(0.0, 0.9), (1.0, 1.0), (1e9, 0.99)])
def test_a_plan_for_an_audit_that_cannot_be_is_refused(z: float, tightness: float) -> None:
    with pytest.raises(UsageError):
        releases_needed(z, tightness=tightness)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    "bug", [{"forgotten": True}, {"noise": 0.5}, {"per_batch": True}], ids=["clip", "noise", "batch"]
)
def test_mistakes_are_caught_at_99_percent(seed: int, bug: dict[str, float]) -> None:
    assert audit(np.random.default_rng(seed), z=1.0, count=4000, **bug).violated  # pyright: ignore[reportArgumentType]


def test_correct_steps_raise_no_alarm() -> None:
    """200 correct steps at 99 %: more than 6 alarms would happen once in 200 such tests."""
    rng = np.random.default_rng(7)
    assert sum(audit(rng, z=1.0, count=1000).violated for _ in range(200)) <= 6
