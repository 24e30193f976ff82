"""Records pooled to cells: weights, intervals, and what is not pooled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gradleak.core.record import Record
from gradleak.report.conclusions.pooling import above_guessing, cells, headline_metric, pool, strongest

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


def test_a_bag_without_exact_records_is_stronger_than_an_attack_that_found_nothing(make_record: Maker) -> None:
    bag = make_record(scores={"token_recall": plain(0.92, 2)})
    span = make_record(attack={"type": "span", "args": {}}, scores=text_scores(0.0, 0.0, 2))
    found = strongest(cells([span, bag]))
    assert found is not None and found.attack == "tag"


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
