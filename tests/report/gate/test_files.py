"""Files for continuous integration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from gradleak.core.record import Record
from gradleak.report.gate import files as gate_files
from gradleak.report.gate.policy import Outcome, Rule, check

pytestmark = pytest.mark.contract

Maker = Callable[..., Record]
NOISY: list[dict[str, Any]] = [{"type": "gaussian", "args": {"std": 0.001, "relative_std": None}}]


def recall(value: float, n: int) -> dict[str, Any]:
    plain = {"value": value, "low": 0.0, "high": 1.0, "chance": 0.0, "n": n, "higher_is_better": True}
    return {"token_recall": plain}


def rule(**changes: Any) -> Rule:
    return Rule(**({"metric": "token_recall", "limit": 0.5} | changes))


def test_files_for_continuous_integration(make_record: Maker) -> None:
    answer = check(
        [make_record(scores=recall(0.9, 500), defenses=NOISY), make_record(scores=recall(0.0, 500))],
        [rule(), rule(defense="none"), rule(attack="span")],
    )
    assert [one.outcome for one in answer.findings] == [Outcome.FAIL, Outcome.PASS, Outcome.INCONCLUSIVE]
    suite = ElementTree.fromstring(gate_files.junit(answer))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    assert [[child.tag for child in case] for case in suite] == [["failure"], [], ["error"]]
    (run,) = json.loads(gate_files.sarif(answer, Path("ci/policy.toml")))["runs"]
    assert [(r["ruleId"], r["kind"], r["level"]) for r in run["results"]] == [
        ("rule-1", "fail", "error"),
        ("rule-2", "pass", "none"),
        ("rule-3", "open", "none"),
    ]
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == {"rule-1", "rule-2", "rule-3"}
