"""The audit of releases: silent on steps that are right, loud on every planted fault. benchmarks/privacy/release_audit.py counts more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradleak.core.errors import UsageError
from gradleak.privacy.auditing.releases import audit_releases
from tests.support.planted_releases import CORRECT, FAULTS, run

pytestmark = pytest.mark.contract


def test_false_alarms_are_rarer_than_promised() -> None:
    """At 0.05, 100 runs: the promise is 5 at most on average; more than 12 has a probability below 0.2 %."""
    alarms = sum(
        audit_releases(**run(CORRECT, np.random.default_rng([1, seed])), significance=0.05).refuted
        for seed in range(100)
    )
    assert alarms <= 12


@pytest.mark.parametrize("fault", FAULTS)
def test_every_planted_fault_is_flagged(fault: str) -> None:
    for seed in range(3):
        audit = audit_releases(**run(FAULTS[fault], np.random.default_rng([2, seed])), significance=0.01)
        assert audit.refuted and all(check.message for check in audit.failed)


def test_a_correct_step_is_measured_as_what_it_is() -> None:
    audit = audit_releases(**run(CORRECT, np.random.default_rng(0)))
    # 48,000 entries: a standard deviation of 0.3 %.
    assert audit.noise_ratio == pytest.approx(1.0, abs=0.015) and audit.sensitivity == pytest.approx(1.0, abs=0.6)


@pytest.mark.parametrize(
    "changes",
    [
        {"clip": 0.0},
        {"noise_multiplier": -1.0},
        {"significance": 1.0},
        {"canary": np.zeros(120)},
        {"reference": np.ones(7), "canary": np.ones(7)},
        {"released_with": np.ones((1, 120))},
        {"released_without": np.full((5, 120), np.nan)},
    ],
)
def test_wrong_use_is_said(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        audit_releases(**(run(CORRECT, np.random.default_rng(0), releases=5) | changes))
