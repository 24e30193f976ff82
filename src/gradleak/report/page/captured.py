"""The report of a captured update: what it is, what attacks read from it, and how sure that is. The page is a function of the run folder and
of ``reveal``: no clock, no randomness, no machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from gradleak.harness.captured.folder import CAPTURED, Proposal, read_captured, read_proposal
from gradleak.harness.running.store import write_atomically
from gradleak.report.conclusions import phrasing
from gradleak.report.conclusions.captured import captured_verdict
from gradleak.report.page.evidence import piece_shown

_TOKENS, _RECORDS = 512, 32
"""Tokens of a record and records of an attack that the page shows."""
_LEVELS = ((0.99, "s3"), (0.9, "s2"), (0.5, "s1"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One attack as the page shows it.

    Attributes:
        records: per record its tokens as (text, class of the style sheet).
        left: records that are not shown.
    """

    attack: str
    status: str
    sentence: str
    message: str
    amount: str
    certificate: str
    sure: str
    seconds: str
    records: tuple[tuple[tuple[str, str], ...], ...]
    left: int


def is_captured(run: Path) -> bool:
    """Whether the folder holds an attack on a captured update, not an audit."""
    return (Path(run) / CAPTURED).is_file()


def captured_context(run: Path, *, reveal: bool) -> dict[str, Any]:
    """What the template needs. Raises ``DataError`` for a folder that cannot be read."""
    plain = read_captured(run)
    inspection: Mapping[str, Any] = plain["inspection"]
    rows = tuple(
        _row(finding, read_proposal(run, number, finding["attack"]["type"]), reveal=reveal)
        for number, finding in enumerate(plain["findings"])
    )
    return {
        "reveal": reveal,
        "verdict": captured_verdict(plain["findings"], inspection["remarks"]),
        "models": [plain["model"]],
        "facts": _facts(plain, inspection),
        "rows": rows,
        "command": plain["command"],
        "environment": sorted((key, str(value)) for key, value in plain["environment"].items()),
    }


def write_captured_page(run: Path, template: Any, style: str, *, reveal: bool) -> Path:
    """Writes ``report.html`` and returns its path."""
    target = Path(run) / "report.html"
    page = template.render(style=Markup(style), **captured_context(Path(run), reveal=reveal))
    write_atomically(target, page.encode())
    return target


def _row(finding: Mapping[str, Any], proposal: Proposal | None, *, reveal: bool) -> Row:
    claims = [sure for record in finding["confidence"] for sure in record]
    records = () if proposal is None else proposal.pieces
    if not finding["ordered"]:
        # An order of the bag would say more than the attack did.
        records = tuple(tuple(sorted(record)) for record in records)
    sure = () if proposal is None or not finding["ordered"] else proposal.confidence
    return Row(
        attack=finding["attack"]["type"],
        status=phrasing.STATUSES.get(finding["status"], finding["status"].lower()),
        sentence=finding["sentence"],
        message=finding["message"],
        amount=f"{len(finding['lengths'])}",
        certificate="–" if finding["certificate"] is None else f"{finding['certificate']:.2g}",
        sure="–" if not claims else f"{min(claims):.3g} to {max(claims):.3g}",
        seconds=f"{finding['seconds']:.1f} s",
        records=tuple(
            _shown(record, sure[i] if i < len(sure) else (), reveal) for i, record in enumerate(records[:_RECORDS])
        ),
        left=max(0, len(records) - _RECORDS),
    )


def _shown(pieces: tuple[str, ...], sure: tuple[float, ...], reveal: bool) -> tuple[tuple[str, str], ...]:
    return tuple(
        (piece_shown(piece, reveal=reveal), _level(sure[place]) if place < len(sure) else "")
        for place, piece in enumerate(pieces[:_TOKENS])
    )


def _level(sure: float) -> str:
    return next((name for least, name in _LEVELS if sure >= least), "s0")


def _facts(plain: Mapping[str, Any], inspection: Mapping[str, Any]) -> list[tuple[str, str]]:
    noise = inspection["noise"]
    measured = "" if noise["size"] is None else f", {noise['size']:.3g} ({noise['low']:.3g} to {noise['high']:.3g})"
    names = inspection["names"] or {}
    return [
        ("file", str(plain["update"])),
        ("kind", inspection["kind"] + (", the reference taken off" if inspection["subtracted"] else "")),
        ("number format", inspection["format"]),
        ("noise", f"{noise['kind']}{measured}"),
        ("norm", f"{inspection['scale']['norm']:.4g}"),
        ("tensors", f"{names.get('matched', inspection['tensors'])} of {inspection['tensors']} fit the model"),
        ("loss", str(plain["loss"])),
    ]
