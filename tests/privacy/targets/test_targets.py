"""Goals that cannot be are refused."""

from __future__ import annotations

import pytest

from gradleak.core.errors import UsageError
from gradleak.privacy.accounting import closed_forms
from gradleak.privacy.targets.targets import BitsAtMost, EpsilonAtMost, SuccessAtMost

pytestmark = pytest.mark.errors


def test_goals_that_cannot_be() -> None:
    for wrong in (
        lambda: EpsilonAtMost(epsilon=0.0),
        lambda: EpsilonAtMost(epsilon=float("inf")),
        lambda: BitsAtMost(bits=-1.0),
        lambda: SuccessAtMost(probability=0.001, candidates=512),
        lambda: SuccessAtMost(probability=0.5, candidates=1),
        lambda: closed_forms.gaussian_multiplier(0.0, 1e-5),
    ):
        with pytest.raises(UsageError):
            wrong()
