"""Continuous integration reads JUnit and SARIF. Must not judge anything."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from gradleak.core.version import VERSION
from gradleak.report.gate.policy import Answer, Finding, Outcome


def junit(answer: Answer) -> str:
    """A test suite: one case per rule and defense. Inconclusive is an error, not a failure."""
    count = {outcome: sum(one.outcome is outcome for one in answer.findings) for outcome in Outcome}
    suite = ElementTree.Element(
        "testsuite",
        name="gradleak",
        tests=str(len(answer.findings)),
        failures=str(count[Outcome.FAIL]),
        errors=str(count[Outcome.INCONCLUSIVE]),
    )
    for one in answer.findings:
        case = ElementTree.SubElement(suite, "testcase", classname="gradleak.check", name=_title(one))
        if one.outcome is not Outcome.PASS:
            tag = "failure" if one.outcome is Outcome.FAIL else "error"
            ElementTree.SubElement(case, tag, type=one.outcome.value, message=one.sentence)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def sarif(answer: Answer, policy: Path) -> str:
    """SARIF 2.1.0: a broken rule is a ``fail``, an undecided one is ``open``; both point at the policy."""
    rules = {_id(one): one.rule for one in answer.findings}
    results = [
        {
            "ruleId": _id(one),
            "kind": {Outcome.FAIL: "fail", Outcome.INCONCLUSIVE: "open", Outcome.PASS: "pass"}[one.outcome],
            "level": "error" if one.outcome is Outcome.FAIL else "none",
            "message": {"text": f"{_title(one)}: {one.sentence}"},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": policy.as_posix()}}}],
        }
        for one in answer.findings
    ]
    driver = {
        "name": "gradleak",
        "version": VERSION,
        "rules": [{"id": name, "shortDescription": {"text": text}} for name, text in rules.items()],
    }
    log = {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }
    return json.dumps(log, indent=2, ensure_ascii=False) + "\n"


def _id(one: Finding) -> str:
    return f"rule-{one.number}"


def _title(one: Finding) -> str:
    return f"{one.rule}, {one.defense}"
