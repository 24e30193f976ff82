"""The equivalent μ of a plan."""

from __future__ import annotations

from typing import Any

import pytest

from gradleak.privacy.accounting.accountant import account
from gradleak.privacy.accounting.budget import equivalent_mu
from gradleak.privacy.plan.plan import Phase, Plan

pytestmark = pytest.mark.oracle


def plan(noise_multiplier: float, steps: int = 1, **kwargs: Any) -> Plan:
    if "sampling_rate" in kwargs:
        kwargs.setdefault("sampling", "poisson")
    return Plan(phases=(Phase(noise_multiplier=noise_multiplier, steps=steps),), **kwargs)


def test_equivalent_mu() -> None:
    assert equivalent_mu(account(plan(0.7)).epsilon, 1e-5) == pytest.approx(1 / 0.7)
