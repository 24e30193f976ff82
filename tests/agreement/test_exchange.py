"""F6: a search that respects positions reads far more out of a noisy gradient than the span check, and the forecast says how
much there is to read. The toys live beside the benchmark that prints their whole table.
"""

from __future__ import annotations

import pytest

from benchmarks.span.toy import recalls


@pytest.mark.slow
def test_exchange_beats_the_span_check_and_stays_below_the_forecast() -> None:
    """Four toys of 15 tokens. The token test told all others is the forecast's own game: within .06 (standard error .03)."""
    found = recalls(3e-4, range(4))
    assert found.exchange >= found.span + 0.2
    assert found.exchange <= found.told
    assert found.told == pytest.approx(found.forecast, abs=0.06)


@pytest.mark.slow
def test_all_of_them_agree_at_both_ends() -> None:
    quiet, loud = recalls(1e-6, range(2)), recalls(0.1, range(2))
    assert quiet.span == quiet.exchange == quiet.told == 1.0
    assert quiet.forecast == pytest.approx(1.0, abs=1e-6)
    assert max(loud.span, loud.exchange, loud.forecast) < 0.1
