"""Counts against the binomial tail."""

from __future__ import annotations

import pytest

from gradleak.privacy import binomial as counts

pytestmark = pytest.mark.oracle


def test_counts_against_the_binomial_tail() -> None:
    from scipy.stats import binom

    for hits, trials in ((0, 10), (3, 10), (10, 10), (499, 1000)):
        low, high = counts.lower(hits, trials, 0.05), counts.upper(hits, trials, 0.05)
        assert low == 0.0 if hits == 0 else binom.sf(hits - 1, trials, low) == pytest.approx(0.05, rel=1e-6)
        assert high == 1.0 if hits == trials else binom.cdf(hits, trials, high) == pytest.approx(0.05, rel=1e-6)
