"""The verdict, the pooling under it, and the terminal table that repeats it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from gradleak.core.record import Record
from gradleak.report.conclusions import words
from gradleak.report.conclusions.pooling import above_guessing, cells, headline_metric, pool, strongest
from gradleak.report.conclusions.verdict import INCONCLUSIVE, NOTHING, verdict
from gradleak.report.terminal.table import table

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


def test_a_bag_without_exact_records_is_stronger_than_an_attack_that_found_nothing(make_record: Maker) -> None:
    bag = make_record(scores={"token_recall": plain(0.92, 2)})
    span = make_record(attack={"type": "span", "args": {}}, scores=text_scores(0.0, 0.0, 2))
    found = strongest(cells([span, bag]))
    assert found is not None and found.attack == "tag"


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


def test_guarantee_is_never_rounded_down() -> None:
    assert words.guarantee({"epsilon": 8.1201, "delta": 1e-5}) == "ε = 8.13 at δ = 1e-05"
    assert words.guarantee({"epsilon": 8.0, "delta": 1e-5}) == "ε = 8 at δ = 1e-05"
    assert words.guarantee({"epsilon": 1234.1, "delta": 1e-5}) == "ε = 1240 at δ = 1e-05"
    assert words.guarantee({"epsilon": None, "delta": 1e-5}) == "no guarantee"


def test_numbers_never_round_to_certainty() -> None:
    shown = [words.number("token_recall", value) for value in (0.0, 0.001, 0.5, 0.999, 1.0)]
    assert shown == ["0%", "<1%", "50%", ">99%", "100%"]
    assert words.number("psnr", 1e300) == "∞"


def test_pool_weights_by_records() -> None:
    pooled = pool([plain(1.0, 1), plain(0.0, 3)], bounded=True)
    assert pooled.value == pytest.approx(0.25)
    assert pooled.n == 4


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (2, 7), (5, 5), (37, 40)])
def test_pooled_rate_has_the_exact_binomial_interval(successes: int, n: int) -> None:
    pooled = pool([plain(float(i < successes)) for i in range(n)], bounded=True)
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="exact")
    assert (pooled.low, pooled.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_pooled_unbounded_score_has_students_interval() -> None:
    values = [11.0, 12.5, 9.8, 14.1, 10.2]
    pooled = pool([plain(value, 2) for value in values], bounded=False)
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (pooled.low, pooled.high) == pytest.approx(expected)


def test_single_unbounded_score_keeps_its_own_interval() -> None:
    assert pool([plain(3.0, 4, low=2.0, high=5.0)], bounded=False).has_interval
    assert not pool([plain(3.0, 1)], bounded=False).has_interval


def image(make: Maker, psnr: float, repeat: int = 0) -> Record:
    scenario = dict(make().scenario) | {"modality": "image"}
    return make(scenario=scenario, repeat=repeat, scores={"psnr": plain(psnr)}, baseline={"psnr": plain(11.0)})


def test_one_image_must_halve_the_error_to_count_as_a_leak(make_record: Maker) -> None:
    gain = 10 * math.log10(2)
    assert verdict([image(make_record, 11.0 + gain + 0.01)]).leak
    assert not verdict([image(make_record, 11.0 + gain - 0.01)]).leak
    assert "no interval" in verdict([image(make_record, 30.0)]).headline


def test_lower_is_better_metrics_are_read_downward(make_record: Maker) -> None:
    def cell(mse: float) -> Any:
        score = {"mse": plain(mse, 4, low=0.9 * mse, high=1.1 * mse, up=False)}
        return cells([make_record(scores=score, baseline={"mse": plain(0.1, 4, up=False)})])[0]

    assert above_guessing(cell(0.01), "mse")
    assert not above_guessing(cell(0.5), "mse")


def test_attacks_with_other_settings_are_not_pooled(make_record: Maker) -> None:
    found = cells([make_record(attack={"type": "tag", "args": {"iterations": n, "lr": 1}}) for n in (10, 20)])
    assert [cell.attack for cell in found] == ["tag(iterations=10)", "tag(iterations=20)"]


def test_scenarios_are_not_pooled_and_are_told_apart(make_record: Maker) -> None:
    found = cells([make_record(scenario=dict(make_record().scenario) | {"batch_size": n}) for n in (1, 4)])
    assert [cell.scenario for cell in found] == ["batch_size=1", "batch_size=4"]


def test_scores_of_failed_attacks_are_not_pooled(make_record: Maker) -> None:
    records = [make_record(scores=text_scores(1.0, 1.0)), failing(make_record, "DIVERGED", [], text_scores(0.0, 0.0))]
    assert cells(records)[0].scores["exact_match"].value == 1.0


def test_headline_metric_follows_what_was_recovered(make_record: Maker) -> None:
    assert headline_metric(cells([make_record(scores=text_scores(0.5, 0.9))])) == "exact_match"
    assert headline_metric(cells([make_record(scores=text_scores(0.0, 0.9))])) == "token_recall"
    assert headline_metric(cells([image(make_record, 20.0)])) == "psnr"


def test_undefended_cells_come_first(make_record: Maker) -> None:
    found = cells([make_record(defenses=[{"type": "sign", "args": {}}]), make_record()])
    assert [cell.defense for cell in found] == ["none", "sign()"]


def test_no_records_are_inconclusive() -> None:
    assert not verdict([]).conclusive


def test_terminal_table_says_the_numbers_of_the_verdict(make_record: Maker) -> None:
    records = [make_record(repeat=i, scores=text_scores(1.0, 1.0, 1)) for i in range(5)]
    records.append(failing(make_record, "NOT_APPLICABLE", [], {}))
    console = Console(file=io.StringIO(), width=200)
    console.print(table(records))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("exact_match", "100% [48–100%]", "no guarantee", "NO_DP_CLAIM", "tag"):
        assert part in text
