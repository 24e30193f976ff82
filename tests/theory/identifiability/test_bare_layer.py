"""The verdicts on the layer of the theory: the law's rank is the Jacobian's, and what does not apply says why."""

from __future__ import annotations

import json

import pytest

from gradleak.core.errors import NotApplicableError, SpecError
from gradleak.models.bare import load_bare
from gradleak.theory.identifiability.bare_layer import BarePrediction, predict_bare
from tests.support.tiny import text_model

pytestmark = pytest.mark.oracle


def predicted(tokens: int, width: int, heads: int = 1, *, records: int = 1) -> BarePrediction:
    sizes = {"hidden_size": width, "num_attention_heads": heads, "seq_len": tokens}
    return predict_bare(
        load_bare("bare:attention", loss=None, classes=2, settings=sizes, seed=0), records=records, seed=0
    )


@pytest.mark.parametrize(("tokens", "width", "heads"), [(4, 4, 1), (3, 4, 2), (4, 6, 1), (6, 4, 2), (5, 8, 4)])
@pytest.mark.parametrize("records", [1, 2])
def test_the_rank_of_the_law_is_the_rank_of_the_jacobian(tokens: int, width: int, heads: int, records: int) -> None:
    for case in predicted(tokens, width, heads, records=records).cases:
        assert case.rank == case.seen <= min(case.unknowns, case.equations)
        assert case.unknowns == records * tokens * width * (1 if case.targets_known else 2)
        assert (case.smallest > 0) == (case.seen == case.unknowns)
        assert case.largest >= case.smallest


def test_the_exact_attack_applies_to_one_record_of_half_the_width() -> None:
    assert "at least twice the 2 tokens" in predicted(2, 4).staged
    assert "width of at least 6 for 3 tokens, this is 4" in predicted(3, 4).staged
    assert "one record, this batch has 2" in predicted(2, 4, records=2).staged


def test_it_prints_as_plain_data() -> None:
    plain = json.loads(json.dumps(predicted(2, 4).to_plain()))
    assert [case["targets_known"] for case in plain["cases"]] == [True, False]
    assert all(case["verdict"].isupper() and case["reason"] for case in plain["cases"])


def test_other_models_and_sizes_are_refused() -> None:
    with pytest.raises(NotApplicableError, match="is not the bare attention layer"):
        predict_bare(text_model("gpt2"), records=1, seed=0)
    with pytest.raises(NotApplicableError, match="more than 4096 unknowns"):
        predicted(32, 64, records=2)
    with pytest.raises(SpecError, match="at least 1 record"):
        predicted(2, 4, records=0)
