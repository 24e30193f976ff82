"""What a report reads of a reconstruction is what the engine writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gradleak
from gradleak.span import statistics
from gradleak.span.statistics import PROPOSED_TOKENS, SAID_BY_PRIOR_ALONE, TOKENS_DUE_TO_PRIOR, PriorShare


@pytest.mark.contract
def test_the_share_of_the_prior_is_read_under_its_present_and_its_earlier_name() -> None:
    written = {PROPOSED_TOKENS: 41.0, TOKENS_DUE_TO_PRIOR: 7.0, SAID_BY_PRIOR_ALONE: 2.0}
    earlier = {"proposed_tokens": 41.0, "owed_to_prior": 7.0, "said_by_prior_alone": 2.0}
    expected = PriorShare(proposed=41, due_to_prior=7, said_by_prior_alone=2)
    assert PriorShare.of(written) == PriorShare.of(earlier) == expected
    assert PriorShare.of({PROPOSED_TOKENS: 41.0}) is None


@pytest.mark.contract
def test_no_other_layer_spells_a_name() -> None:
    source = Path(gradleak.__file__).parent
    names = {value for name, value in vars(statistics).items() if name.isupper() and isinstance(value, str)} - {
        "tested"
    }
    outside = [path for path in source.rglob("*.py") if path.relative_to(source).parts[:2] != ("span", "statistics.py")]
    spelled = {
        f"{path.relative_to(source)}: {name}"
        for path in outside
        for name in names
        if re.search(rf'"{name}"', path.read_text(encoding="utf-8"))
    }
    assert not spelled
