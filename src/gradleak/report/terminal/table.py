"""The table of a run for a terminal. Must not know the page; says the same numbers as it, from ``summary``."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

from gradleak.core.record import Record
from gradleak.report.conclusions import phrasing
from gradleak.report.conclusions.pooling import LEAK_METRICS, Cell, cells, leaking_metric

SHORT_STATUS_WIDTH = 18


def table(records: Iterable[Record]) -> Table:
    """Attack × defense with the metrics that decide the verdict: value, 95 % interval and prior-only level."""
    found = cells(records)
    modality = found[0].modality if found else "text"
    metrics = [name for name in (*LEAK_METRICS[modality], "ssim") if any(name in cell.scores for cell in found)]
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=_caption(), caption_justify="left")
    result.add_column("defense", overflow="fold")
    result.add_column("attack", overflow="fold")
    for metric in metrics:
        result.add_column(metric, justify="right", no_wrap=True)
        result.add_column("prior", justify="right", no_wrap=True)
    result.add_column("n", justify="right")
    result.add_column("status", overflow="fold")
    wrong = any(phrasing.false_positives(cell) for cell in found)
    if wrong:
        result.add_column("proposed", overflow="fold")
    result.add_column("flags", overflow="fold")
    previous: Cell | None = None
    for cell in found:
        if previous is not None and previous.group != cell.group:
            result.add_section()
        first = previous is None or previous.group != cell.group
        result.add_row(*_row(cell, metrics, first=first, wrong=wrong))
        previous = cell
    return result


def _caption() -> Text:
    return Text("[low–high] 95% interval · prior: same metric for guessing without the update · bold: above guessing")


def _row(cell: Cell, metrics: list[str], *, first: bool, wrong: bool) -> list[Text]:
    leak = leaking_metric(cell)
    row = [_defense(cell) if first else Text(""), Text(cell.attack, style="bold" if leak else "")]
    for metric in metrics:
        row += [_score(cell, metric, bold=metric == leak), _prior(cell, metric)]
    sizes = {score.n for score in cell.scores.values()}
    row.append(Text(str(max(sizes)) if sizes else "–"))
    row.append(Text(phrasing.statuses(cell.statuses)))
    if wrong:
        row.append(Text(phrasing.false_positives(cell) or "–"))
    row.append(Text(" ".join(phrasing.flags(cell.flags, len(cell.records))), style="yellow"))
    return row


def _defense(cell: Cell) -> Text:
    lines = [cell.scenario, cell.defense, phrasing.guarantee(cell.records[0].privacy)]
    text = Text("\n".join(line for line in lines if line))
    text.stylize("dim", len(text) - len(lines[-1]))
    return text


def _score(cell: Cell, metric: str, *, bold: bool) -> Text:
    score = cell.scores.get(metric)
    if score is None:
        return Text("–", style="dim")
    text = Text(phrasing.number(metric, score.value), style="bold red" if bold else "")
    text.append(f" [{phrasing.interval(metric, score)}]", style="dim not bold")
    return text


def _prior(cell: Cell, metric: str) -> Text:
    baseline = cell.baseline.get(metric)
    return Text("–" if baseline is None else phrasing.number(metric, baseline.value), style="dim")
