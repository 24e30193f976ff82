"""What attacks on a captured update came to, in phrasing. There is no truth to score against: what is said rests on the certificate and on the
probabilities that attacks claim. Must not know how it is printed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradleak.report.conclusions import phrasing
from gradleak.report.conclusions.verdict import Verdict
from gradleak.span.statistics import NULL_CUT

UNREADABLE = "No attack here can read this kind of update; that says nothing about what it holds."
NOTHING = "No attack tried here read anything from this update; this is not evidence of protection."
_SURE = 0.5
_PROVEN = ("EXACT",)


def captured_verdict(findings: Sequence[Mapping[str, Any]], remarks: Sequence[str] = ()) -> Verdict:
    """Reads the findings of one captured update.

    Args:
        findings: as ``captured.json`` holds them.
        remarks: sentences on the update itself; they end the reading.

    A leak is claimed for a certified batch, and for tokens of which an attack itself says how probable they are. What an attack proposes
    without saying so, such as one that matches gradients, is told as that.
    """
    applied = [finding for finding in findings if finding["status"] not in {"NOT_APPLICABLE", "DIVERGED"}]
    proposing = [finding for finding in applied if finding["lengths"]]
    best = max(proposing, key=_strength, default=None)
    limits = [*_failures(findings), *remarks]
    if best is None:
        headline = NOTHING if applied else UNREADABLE
        return Verdict(headline=headline, sentences=tuple(limits), conclusive=bool(applied), leak=False)
    leak = best["status"] in _PROVEN or _expected(best) > 0 or _tested(best)
    others = [f"{finding['attack']['type']}: {_amount(finding)} ({_evidence(finding)})." for finding in proposing]
    others = [text for finding, text in zip(proposing, others, strict=True) if finding is not best]
    return Verdict(
        headline=f"{best['attack']['type']} {'read' if leak else 'proposes'} {_amount(best)} from this update ({_evidence(best)}).",
        sentences=(*others, *limits),
        conclusive=True,
        leak=leak,
    )


def _strength(finding: Mapping[str, Any]) -> tuple[float, ...]:
    return (
        finding["status"] in _PROVEN,
        _tested(finding) and finding["ordered"],
        bool(finding["confidence"]) and finding["ordered"],
        bool(finding["confidence"]) or _tested(finding),
        _expected(finding),
        _tokens(finding),
    )


def _tested(finding: Mapping[str, Any]) -> bool:
    """Whether every proposed token passed a test against the law of tokens that are not in the batch."""
    return NULL_CUT in finding["statistics"] and finding["status"] in {"CONVERGED", "UNDECIDED", "BUDGET_SPENT"}


def _tokens(finding: Mapping[str, Any]) -> int:
    return sum(length for length in finding["lengths"] if isinstance(length, int))


def _expected(finding: Mapping[str, Any]) -> float:
    """Tokens that are right, by the attack's own probabilities."""
    return sum(sure for record in finding["confidence"] for sure in record if sure >= _SURE)


def _amount(finding: Mapping[str, Any]) -> str:
    lengths = finding["lengths"]
    if any(not isinstance(length, int) for length in lengths):
        return phrasing.count(len(lengths), "image")
    tokens = phrasing.count(_tokens(finding), "token")
    if not finding["ordered"]:
        return f"{tokens} without their order"
    return f"{phrasing.count(len(lengths), 'record')} of {tokens}"


def _evidence(finding: Mapping[str, Any]) -> str:
    """Why the proposal may be believed, or that nothing says so."""
    if finding["status"] in _PROVEN:
        return "certified: the update recomputed from it equals this one up to rounding"
    claims = [sure for record in finding["confidence"] for sure in record]
    parts = [phrasing.STATUSES.get(finding["status"], finding["status"].lower())]
    if claims:
        least, wrong = min(claims), sum(1 - sure for sure in claims)
        parts.append(
            f"by its own probabilities {wrong:.2g} of {phrasing.count(len(claims), 'token')} wrong, least {least:.3g}"
        )
    elif _tested(finding):
        parts.append("every token passed tests that let a wrong one pass at a known rate")
    else:
        parts.append("it claims no probability, so nothing says that this is right")
    if finding["certificate"] is not None:
        parts.append(f"the update recomputed from it is off by {finding['certificate']:.2g} of its norm")
    return "; ".join(parts)


def _failures(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{finding['attack']['type']} gave no result: {finding['message']}"
        for finding in findings
        if not finding["lengths"]
    ]
