"""F6: a search that respects positions reads far more out of a noisy gradient than the span check, and the forecast says how
much there is to read. The toys live beside the benchmark that prints their whole table.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

_TOY = Path(__file__).parents[2] / "benchmarks" / "span_toy.py"


@pytest.fixture(scope="module")
def toy() -> Any:
    spec = importlib.util.spec_from_file_location("span_toy", _TOY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its own module up while it is made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_exchange_beats_the_span_check_and_stays_below_the_forecast(toy: Any) -> None:
    """Four toys of 15 tokens. The token test told all others is the forecast's own game: within .06 (standard error .03)."""
    found = toy.recalls(3e-4, range(4))
    assert found.exchange >= found.span + 0.2
    assert found.exchange <= found.told
    assert found.told == pytest.approx(found.forecast, abs=0.06)


@pytest.mark.slow
def test_all_of_them_agree_at_both_ends(toy: Any) -> None:
    quiet, loud = toy.recalls(1e-6, range(2)), toy.recalls(0.1, range(2))
    assert quiet.span == quiet.exchange == quiet.told == 1.0
    assert quiet.forecast == pytest.approx(1.0, abs=1e-6)
    assert max(loud.span, loud.exchange, loud.forecast) < 0.1
