"""What a run means, in phrasing that claim no more than was measured. Must not know how it is printed; never says
that anything is protected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from gradleak.core.record import Record
from gradleak.report.conclusions import phrasing
from gradleak.report.conclusions.pooling import (
    LEAK_METRICS,
    SEARCH_FAILED,
    Cell,
    cells,
    groups,
    leaking_metric,
    strongest,
    trustworthy,
)

NOTHING = "No attack tried here recovered more than guessing; this is not evidence of protection."
INCONCLUSIVE = "Inconclusive: every attack tried here failed or did not apply, which says nothing about the update."
EMPTY = "Inconclusive: this run holds no record yet."


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A run in phrasing.

    Attributes:
        headline: one line; names attack, adversary, defense, what was recovered, interval, prior-only level, guarantee.
        sentences: one per defense that the headline does not tell of, then what limits the reading.
        conclusive: True if there is a leak, or at least one attack ran to a result that may be believed.
        leak: True if some attack recovered more than guessing.
    """

    headline: str
    sentences: tuple[str, ...]
    conclusive: bool
    leak: bool

    @property
    def kind(self) -> Literal["leak", "nothing", "inconclusive"]:
        if self.leak:
            return "leak"
        return "nothing" if self.conclusive else "inconclusive"


def verdict(records: Iterable[Record]) -> Verdict:
    """Reads all records of a run.

    A leak is a cell in which a record was recovered exactly, or whose token recall (PSNR for images) has an interval
    that lies above the prior-only value. Without a leak the run is conclusive only if some attack ran to a result:
    it applied, did not break down, and its search did not miss an optimum that the truth attains. Where a value is
    better than guessing and its interval is not, the headline says so: it must not claim that nothing was recovered.
    """
    given = tuple(records)
    if not given:
        return Verdict(headline=EMPTY, sentences=(), conclusive=False, leak=False)
    found = cells(given)
    best = strongest(found)
    metric = None if best is None else leaking_metric(best)
    leak = metric is not None
    conclusive = leak or any(trustworthy(record) for record in given)
    several = len({cell.threat for cell in found}) > 1
    by_defense = {group: _defense_sentence(members, name_threat=several) for group, members in groups(found).items()}
    if best is not None and metric is not None:
        headline = _leak_headline(best, metric)
        del by_defense[best.group]
    elif not conclusive:
        headline = INCONCLUSIVE
    elif best is not None and _ahead(best):
        headline = _undecided_headline(best)
        del by_defense[best.group]
    else:
        headline = NOTHING
    return Verdict(
        headline=headline, sentences=(*by_defense.values(), *_limits(found, leak)), conclusive=conclusive, leak=leak
    )


def _leak_headline(cell: Cell, metric: str) -> str:
    where = f"{cell.scenario}: " if cell.scenario else ""
    return (
        f"{where}{cell.attack}, run by the {phrasing.adversary(cell.threat)}, recovered {_amount(cell, metric)} "
        f"{_through(cell.defense)} ({_evidence(cell, metric)}); {phrasing.guarantee(cell.records[0].privacy)}."
    )


def _ahead(cell: Cell) -> bool:
    """Whether the value itself, not its interval, is better than guessing."""
    metric = LEAK_METRICS[cell.modality][-1]
    score, baseline = cell.scores.get(metric), cell.baseline.get(metric)
    return score is not None and baseline is not None and score.value > baseline.value


def _undecided_headline(cell: Cell) -> str:
    metric = LEAK_METRICS[cell.modality][-1]
    where = f"{cell.scenario}: " if cell.scenario else ""
    return (
        f"{where}{cell.attack}, run by the {phrasing.adversary(cell.threat)}, came furthest and recovered "
        f"{_amount(cell, metric)} {_through(cell.defense)}, which {phrasing.count(cell.scores[metric].n, 'record')} cannot "
        f"tell from guessing ({_evidence(cell, metric)}); {phrasing.guarantee(cell.records[0].privacy)}. "
        "This is not evidence of protection."
    )


def _through(defense: str) -> str:
    return "from the undefended update" if defense == "none" else f"through {defense}"


def _amount(cell: Cell, metric: str) -> str:
    score = cell.scores[metric]
    if metric == "exact_match":
        if abs(score.value * score.n - round(score.value * score.n)) < 1e-6:
            return f"{round(score.value * score.n)} of {phrasing.count(score.n, 'private record')} exactly"
        return f"{phrasing.number(metric, score.value)} of the private records exactly"
    if metric == "token_recall":
        return f"{phrasing.number(metric, score.value)} of the private tokens"
    return f"the private images at {phrasing.number(metric, score.value)} {metric.upper()}"


def _evidence(cell: Cell, metric: str) -> str:
    """``100%, 95% interval 48–100%, prior-only 0%``."""
    score, baseline = cell.scores[metric], cell.baseline.get(metric)
    spread = f"95% interval {phrasing.interval(metric, score)}" if score.has_interval else "one record, no interval"
    prior = "no prior-only level" if baseline is None else f"prior-only {phrasing.number(metric, baseline.value)}"
    lead = f"{phrasing.number(metric, score.value)}, " if metric == "exact_match" else ""
    return f"{lead}{spread}, {prior}"


def _defense_sentence(members: Sequence[Cell], *, name_threat: bool) -> str:
    first = members[0]
    parts = [first.scenario, phrasing.adversary(first.threat) if name_threat else "", phrasing.defense(first.defense)]
    title = ", ".join(part for part in parts if part)
    title = title[0].upper() + title[1:] if title.startswith("no defense") else title
    return f"{title}: {_outcome(strongest(members), members)}; {phrasing.guarantee(first.records[0].privacy)}."


def _outcome(best: Cell | None, members: Sequence[Cell]) -> str:
    if best is None:
        return "no attack applied or ran to a result"
    metric = leaking_metric(best)
    if metric is not None:
        return f"{best.attack} recovered {_amount(best, metric)} ({_evidence(best, metric)})"
    if not any(cell.tested() for cell in members):
        return "every search failed or did not apply, so this defense was not tested"
    metric = next((name for name in reversed(LEAK_METRICS[best.modality]) if name in best.scores), None)
    if metric is None:
        return f"nothing above guessing; {best.attack} was the strongest"
    if _ahead(best):
        return f"undecided; {best.attack} recovered {_amount(best, metric)} ({_evidence(best, metric)})"
    return (
        f"nothing above guessing; {best.attack} came furthest with {_amount(best, metric)} ({_evidence(best, metric)})"
    )


def _limits(found: Sequence[Cell], leak: bool) -> list[str]:
    sentences: list[str] = []
    repeats = [record for cell in found for record in cell.records]
    failed = sum(SEARCH_FAILED in record.flags for record in repeats)
    if failed:
        sentences.append(
            f"In {failed} of {phrasing.count(len(repeats), 'attack run')} the search missed an optimum that the true data "
            "attain; these count as failed, not as resisted."
        )
    if found and len({(record.seed, record.repeat) for record in repeats}) == 1:
        sentences.append(
            "One batch was attacked. The scores are what happened to it, the intervals are about other batches; so few "
            "records leave them wide whatever happened here, and --repeats 20 would narrow them."
        )
    recall = [cell.scores["token_recall"].high for cell in found if "token_recall" in cell.scores and cell.tested()]
    if recall and not leak:
        sentences.append(
            f"The intervals reach up to {phrasing.number('token_recall', max(recall))} of the tokens, so a leak of that "
            "size cannot be excluded; more repeats narrow them."
        )
    return sentences
