"""The least noise for a goal."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradleak.privacy.accounting import closed_forms
from gradleak.privacy.accounting.accountant import account
from gradleak.privacy.plan.plan import Phase, Plan
from gradleak.privacy.targets.calibrate import calibrate
from gradleak.privacy.targets.targets import BitsAtMost, EpsilonAtMost, SpanDead, SuccessAtMost

pytestmark = pytest.mark.oracle


def plan(noise_multiplier: float, steps: int = 1, **kwargs: Any) -> Plan:
    if "sampling_rate" in kwargs:
        kwargs.setdefault("sampling", "poisson")
    return Plan(phases=(Phase(noise_multiplier=noise_multiplier, steps=steps),), **kwargs)


def test_a6_calibration() -> None:
    of = plan(1.0, 512, sampling_rate=0.1, delta=1e-6)
    z = calibrate(of, EpsilonAtMost(epsilon=1.0))
    assert z == pytest.approx(9.66, abs=5e-3)
    assert account(plan(z, 512, sampling_rate=0.1, delta=1e-6)).epsilon <= 1.0


@pytest.mark.parametrize(
    ("goal", "multiplier"),
    [
        (EpsilonAtMost(epsilon=1.0), 3.731),
        (EpsilonAtMost(epsilon=8.0), 0.600),
        (SuccessAtMost(probability=0.5, candidates=50257), 0.243),
        (SuccessAtMost(probability=0.01, candidates=50257), 0.561),
        (SuccessAtMost(probability=0.1, candidates=256), 0.725),
        (SpanDead(columns=768), 0.0704),
        (SpanDead(columns=768, tokens=16, share=0.1), 0.00557),
        (SpanDead(columns=3 * 4096, tokens=16, share=0.1), 0.00287),
    ],
)
def test_goals_of_one_release(goal: Any, multiplier: float) -> None:
    """The noise multipliers of the notes' frontier, one release."""
    assert calibrate(plan(1.0), goal) == pytest.approx(multiplier, rel=2e-3)
    assert calibrate(plan(7.0), goal) * 7.0 == pytest.approx(multiplier, rel=2e-3)


def test_leaked_bits_bound_lies_above_the_measured_bits() -> None:
    """Notes, 512 sentences: 6.24, 2.63, .67 bits at z = .3, .5, 1."""
    for z, measured in ((0.3, 6.24), (0.5, 2.63), (1.0, 0.67)):
        assert measured <= closed_forms.leaked_bits([(z, 1)], 1.0) <= 1.3 * measured
    assert calibrate(plan(1.0), BitsAtMost(bits=1.0)) == pytest.approx(1 / math.sqrt(2 * math.log(2)), rel=2e-4)
    assert calibrate(plan(1.0, 100, sampling_rate=0.25), BitsAtMost(bits=1.0)) == pytest.approx(
        math.sqrt(25 / (2 * math.log(2))), rel=2e-4
    )
