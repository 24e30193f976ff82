"""The test of a mechanism against its claim is Fisher's exact test and keeps its false-alarm rate."""

from __future__ import annotations

import numpy as np
import pytest

from gradleak.privacy.auditing.conformance import Verdict, conform
from gradleak.privacy.bounds.bayes import Rate

pytestmark = pytest.mark.oracle


def test_conformance_is_fisher_exact() -> None:
    from scipy.stats import fisher_exact

    predicted = Rate.of(438, 2000, 0.99)
    found = conform(298, 1000, predicted, kappa=1 / 256, mu_claimed=2.0)
    expected = fisher_exact([[298, 702], [438, 1562]], alternative="greater").pvalue
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert found.verdict is Verdict.VIOLATION and found.bound_violated
    assert conform(209, 1000, predicted, kappa=1 / 256, mu_claimed=2.0).verdict is Verdict.CONSISTENT
    assert conform(10, 1000, predicted, kappa=1 / 256, mu_claimed=2.0).verdict is Verdict.WEAK_ATTACK


def test_conformance_false_alarms() -> None:
    """2,000 correct runs at 5 %: at most 129 alarms with 99.9 %."""
    rng = np.random.default_rng(1)
    alarms = sum(
        conform(
            int(rng.binomial(500, 0.2)),
            500,
            Rate.of(int(rng.binomial(5000, 0.2)), 5000, 0.99),
            kappa=0.01,
            mu_claimed=1.5,
        ).verdict
        is Verdict.VIOLATION
        for _ in range(2000)
    )
    assert 20 <= alarms <= 129
