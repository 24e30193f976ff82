"""A gate passes only what a run shows: a broken limit, a kept one and an undecided one are three things."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradleak.core.errors import DataError, SpecError, UnknownNameError, UsageError
from gradleak.core.record import Record
from gradleak.report.gate.policy import Outcome, Rule, check, read_policy

pytestmark = pytest.mark.contract

Maker = Callable[..., Record]
NOISE = "gaussian(std=0.001)"
NOISY: list[dict[str, Any]] = [{"type": "gaussian", "args": {"std": 0.001, "relative_std": None}}]


def recall(value: float, n: int) -> dict[str, Any]:
    plain = {"value": value, "low": 0.0, "high": 1.0, "chance": 0.0, "n": n, "higher_is_better": True}
    return {"token_recall": plain}


def rule(**changes: Any) -> Rule:
    return Rule(**({"metric": "token_recall", "limit": 0.5} | changes))


@pytest.mark.parametrize(
    ("value", "n", "outcome"),
    [
        (0.0, 200, Outcome.PASS),
        (0.0, 3, Outcome.INCONCLUSIVE),
        (0.6, 3, Outcome.FAIL),
        (0.45, 200, Outcome.INCONCLUSIVE),
    ],
    ids=["whole interval within", "too few records", "value beyond", "interval crosses"],
)
def test_passes_only_if_the_whole_interval_is_within(
    make_record: Maker, value: float, n: int, outcome: Outcome
) -> None:
    answer = check([make_record(scores=recall(value, n), defenses=NOISY)], [rule()])
    assert answer.outcome is outcome
    assert [one.defense for one in answer.findings] == [NOISE]


def test_a_failed_search_cannot_pass_but_can_break_a_limit(make_record: Maker) -> None:
    failed = {"flags": ["OPTIMIZER_FAILED"], "defenses": NOISY}
    assert check([make_record(scores=recall(0.0, 500), **failed)], [rule()]).outcome is Outcome.INCONCLUSIVE
    assert check([make_record(scores=recall(0.9, 500), **failed)], [rule()]).outcome is Outcome.FAIL
    beside = make_record(scores=recall(0.0, 500), defenses=NOISY, attack={"type": "span", "args": {}})
    assert check([make_record(scores=recall(0.0, 500), **failed), beside], [rule()]).outcome is Outcome.PASS


def test_the_worst_attack_decides_and_the_undefended_yardstick_does_not(make_record: Maker) -> None:
    weak = make_record(scores=recall(0.0, 500), defenses=NOISY, attack={"type": "dlg", "args": {}})
    strong = make_record(scores=recall(0.8, 500), defenses=NOISY, attack={"type": "span", "args": {}})
    bare = make_record(scores=recall(1.0, 500))
    assert check([weak, bare], [rule()]).outcome is Outcome.PASS
    assert check([bare], [rule()]).outcome is Outcome.FAIL
    (found,) = check([weak, strong, bare], [rule()]).findings
    assert found.outcome is Outcome.FAIL
    assert found.sentence.startswith("span reached 80%")
    assert check([weak, strong], [rule(attack="dlg")]).outcome is Outcome.PASS


def test_what_the_run_does_not_hold_is_inconclusive(make_record: Maker) -> None:
    records = [make_record(scores=recall(0.0, 500), defenses=NOISY)]
    assert check(records, [rule(defense="sign()")]).outcome is Outcome.INCONCLUSIVE
    assert check(records, [rule(attack="span")]).outcome is Outcome.INCONCLUSIVE
    assert check(records, [rule(), rule(attack="span")]).outcome is Outcome.INCONCLUSIVE


def test_a_metric_where_less_is_leakier_has_a_floor(make_record: Maker) -> None:
    def ranked(value: float) -> Record:
        plain = {"value": value, "low": value, "high": value, "chance": 50.0, "n": 1, "higher_is_better": False}
        return make_record(scores={"identification_rank": plain})

    floor = Rule(metric="identification_rank", limit=5.0, upward=True)
    assert check([ranked(1.0)], [floor]).outcome is Outcome.FAIL
    several = [ranked(v) for v in (40.0, 41.0, 39.0, 40.0)]
    assert check(several, [floor]).outcome is Outcome.PASS
    assert check([ranked(40.0)], [floor]).outcome is Outcome.INCONCLUSIVE, "one batch has no spread"


def test_epsilon_needs_a_claim(make_record: Maker) -> None:
    rules = [Rule(metric="epsilon", limit=8.0)]
    claimed = dict(make_record().privacy)
    assert check([make_record()], rules).outcome is Outcome.FAIL
    assert check([make_record(privacy=claimed | {"epsilon": 8.1})], rules).outcome is Outcome.FAIL
    assert check([make_record(privacy=claimed | {"epsilon": 7.9})], rules).outcome is Outcome.PASS


def test_a_policy_names_chains_as_they_are_typed(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(
        '[[rule]]\nmetric = "token_recall"\nat_most = 1\ndefense = "prune(fraction=0.9)"\n[[rule]]\nepsilon_at_most = 8\n'
    )
    first, second = read_policy(path)
    assert first == Rule(metric="token_recall", limit=1.0, defense="prune(fraction=0.9, scope=global)")
    assert second == Rule(metric="epsilon", limit=8.0)


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("", DataError, "holds no rule"),
        ("rule = 3", DataError, "holds no rule"),
        ("[[rules]]", UnknownNameError, "Did you mean 'rule'"),
        ("[[rule]]\nmetrics = 'x'", UnknownNameError, "Did you mean 'metric'"),
        ("[[rule]]\nmetric = 'token_recal'\nat_most = 1", UnknownNameError, "token_recall"),
        ("[[rule]]\nmetric = 'token_recall'", SpecError, "Rule 1 needs"),
        ("[[rule]]\nmetric = 'token_recall'\nat_most = 1\nat_least = 0", SpecError, "Rule 1 needs"),
        ("[[rule]]\nmetric = 'token_recall'\nepsilon_at_most = 1", SpecError, "Rule 1 needs"),
        ("[[rule]]\nmetric = 'token_recall'\nat_most = true", SpecError, "must be a number"),
        ("[[rule]]\nmetric = 'token_recall'\nat_most = 1\nattack = 'spam'", UnknownNameError, "span"),
        ("[[rule]]\nmetric = 'token_recall'\nat_most = 1\ndefense = 'clip('", SpecError, "clip("),
        ("at_most = ", DataError, "TOML"),
    ],
)
def test_a_policy_that_says_nothing_is_refused(tmp_path: Path, text: str, error: type[UsageError], named: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(error) as caught:
        read_policy(path)
    assert named in str(caught.value)


def test_the_policy_of_the_guide_can_be_read(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "gate.md").read_text(encoding="utf-8")
    path = tmp_path / "policy.toml"
    path.write_text(guide.split("```toml\n")[1].split("```")[0])
    assert [str(one) for one in read_policy(path)] == [
        "token_recall at most 0.5",
        "exact_match by span at most 0.1",
        "identification_rank at least 5",
        "epsilon at most 8",
    ]
    assert 1 - 0.025 ** (1 / 36) < 0.1 < 1 - 0.025 ** (1 / 35)
