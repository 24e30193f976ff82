"""Described events against the accountant of their library."""

from __future__ import annotations

from typing import Any

import pytest

from gradleak.privacy.accounting.events import describe
from gradleak.privacy.plan.plan import Phase, Plan
from gradleak.privacy.plan.views import resolve

pytestmark = pytest.mark.oracle


def plan(noise_multiplier: float, steps: int = 1, **kwargs: Any) -> Plan:
    if "sampling_rate" in kwargs:
        kwargs.setdefault("sampling", "poisson")
    return Plan(phases=(Phase(noise_multiplier=noise_multiplier, steps=steps),), **kwargs)


def test_a3_delta_of_three_sampled_steps() -> None:
    from dp_accounting.pld import PLDAccountant

    event = describe(resolve(plan(0.5, 3, sampling_rate=0.2)), "pld")
    assert event is not None
    assert PLDAccountant().compose(event).get_delta(1.0) == pytest.approx(0.15594, abs=1e-3)
