"""Goals that no noise reaches are refused."""

from __future__ import annotations

from typing import Any

import pytest

from gradleak.core.errors import UsageError
from gradleak.privacy.plan.file import make_plan
from gradleak.privacy.targets.calibrate import calibrate
from gradleak.privacy.targets.targets import BitsAtMost, EpsilonAtMost

pytestmark = pytest.mark.errors

BASE: dict[str, Any] = {"noise_multiplier": 1.0}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"clip": "none"}, "No amount of noise"),
        ({"noise_multiplier": 0.0}, "cannot be scaled"),
    ],
)
def test_plans_that_no_noise_mends(table: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        calibrate(make_plan({**BASE, **table}), EpsilonAtMost(epsilon=1.0))


def test_goals_out_of_reach() -> None:
    with pytest.raises(UsageError, match="does not reach"):
        calibrate(make_plan({**BASE, "delta": 1e-12}), EpsilonAtMost(epsilon=1e-9))
    with pytest.raises(UsageError, match="Hardly any noise"):
        calibrate(make_plan(BASE), BitsAtMost(bits=1e12))
