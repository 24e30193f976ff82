"""The verdict over the records of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from gradleak.core.record import Record
from gradleak.report.conclusions.verdict import INCONCLUSIVE, NOTHING, verdict

pytestmark = pytest.mark.contract

Maker = Callable[..., Record]


def plain(
    value: float, n: int = 1, *, low: float | None = None, high: float | None = None, up: bool = True
) -> dict[str, Any]:
    return {
        "value": value,
        "low": value if low is None else low,
        "high": value if high is None else high,
        "chance": 0.0,
        "n": n,
        "higher_is_better": up,
    }


def text_scores(exact: float, recall: float, n: int = 20) -> dict[str, Any]:
    return {"exact_match": plain(exact, n), "token_recall": plain(recall, n)}


def failing(make: Maker, name: str, flags: list[str], scores: dict[str, Any]) -> Record:
    return make(status=dict(make().status) | {"name": name}, flags=flags, scores=scores)


def test_exact_record_is_a_leak_and_the_headline_states_all_of_it(make_record: Maker) -> None:
    found = verdict([make_record(repeat=i, scores=text_scores(1.0, 1.0, 1)) for i in range(5)])
    assert found.leak and found.conclusive and found.kind == "leak"
    for part in (
        "tag",
        "honest server",
        "undefended",
        "5 of 5 private records",
        "48–100%",
        "prior-only 0%",
        "no guarantee",
    ):
        assert part in found.headline


def test_recall_above_prior_is_a_leak_without_exact_records(make_record: Maker) -> None:
    found = verdict([make_record(scores=text_scores(0.0, 0.6))])
    assert found.leak
    assert "60% of the private tokens" in found.headline


def test_a_value_above_the_prior_whose_interval_reaches_it_is_undecided(make_record: Maker) -> None:
    found = verdict([make_record(scores=text_scores(0.0, 0.15))])
    assert found.conclusive and not found.leak
    assert "20 records cannot tell from guessing" in found.headline
    assert "15% of the private tokens" in found.headline and "not evidence of protection" in found.headline
    assert "cannot be excluded" in " ".join(found.sentences)


def test_a_value_below_the_prior_recovered_no_more_than_guessing(make_record: Maker) -> None:
    found = verdict([make_record(scores=text_scores(0.0, 0.05))])
    assert found.headline == NOTHING
    assert found.conclusive and not found.leak


@pytest.mark.parametrize(
    ("name", "flags", "scores"),
    [
        ("NOT_APPLICABLE", [], {}),
        ("DIVERGED", [], {}),
        ("CONVERGED", ["OPTIMIZER_FAILED"], text_scores(0.0, 0.05)),
    ],
)
def test_failures_alone_are_inconclusive(
    make_record: Maker, name: str, flags: list[str], scores: dict[str, Any]
) -> None:
    found = verdict([failing(make_record, name, flags, scores)])
    assert found.headline == INCONCLUSIVE
    assert not found.conclusive and found.kind == "inconclusive"


def test_a_failed_search_that_leaks_still_leaks(make_record: Maker) -> None:
    assert verdict([failing(make_record, "CONVERGED", ["OPTIMIZER_FAILED"], text_scores(0.0, 0.9))]).leak


def test_one_trustworthy_attack_makes_the_run_conclusive(make_record: Maker) -> None:
    bad = failing(make_record, "DIVERGED", [], {})
    good = make_record(attack={"type": "span", "args": {}}, scores=text_scores(0.0, 0.1))
    assert verdict([bad, good]).headline == NOTHING


def test_a_defense_where_every_search_failed_is_not_tested(make_record: Maker) -> None:
    defended = make_record(
        defenses=[{"type": "sign", "args": {}}], flags=["OPTIMIZER_FAILED"], scores=text_scores(0.0, 0.02)
    )
    found = verdict([make_record(scores=text_scores(1.0, 1.0)), defended])
    assert any("sign()" in sentence and "was not tested" in sentence for sentence in found.sentences)


def image(make: Maker, psnr: float, repeat: int = 0) -> Record:
    scenario = dict(make().scenario) | {"modality": "image"}
    return make(scenario=scenario, repeat=repeat, scores={"psnr": plain(psnr)}, baseline={"psnr": plain(11.0)})


def test_one_image_must_halve_the_error_to_count_as_a_leak(make_record: Maker) -> None:
    gain = 10 * math.log10(2)
    assert verdict([image(make_record, 11.0 + gain + 0.01)]).leak
    assert not verdict([image(make_record, 11.0 + gain - 0.01)]).leak
    assert "no interval" in verdict([image(make_record, 30.0)]).headline


def test_no_records_are_inconclusive() -> None:
    assert not verdict([]).conclusive
