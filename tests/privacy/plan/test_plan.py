"""Each wrong value of a plan is an error that says what was given, what is required, and the nearest valid choice."""

from __future__ import annotations

import pytest

from gradleak.core.errors import UsageError
from gradleak.privacy.plan.file import make_plan
from gradleak.privacy.plan.plan import Plan

pytestmark = pytest.mark.errors


def test_a_plan_needs_noise_and_phases() -> None:
    with pytest.raises(UsageError, match="has no noise_multiplier"):
        make_plan({"steps": 3})
    with pytest.raises(UsageError, match="at least one"):
        Plan(phases=())
