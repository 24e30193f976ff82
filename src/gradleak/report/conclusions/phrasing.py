"""Numbers, names and flags as a reader sees them, said once for the page, the terminal and the verdict. Must not
know where they are printed; holds no markup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gradleak.harness.judging.flags import Flag
from gradleak.report.conclusions.pooling import UNBOUNDED, Cell, Pooled
from gradleak.span.statistics import PriorShare

METRICS: Mapping[str, str] = {
    "exact_match": "share of private records recovered exactly",
    "token_recall": "share of private tokens recovered, in any position; one proposal counts for one record",
    "token_accuracy": "share of private tokens recovered in their position",
    "rouge1": "overlap of single words (F1)",
    "rouge2": "overlap of word pairs (F1)",
    "rougeL": "longest common word sequence (F1)",
    "identification_rank": "rank of the true record among decoys that resemble it; 1 is identified",
    "psnr": "peak signal-to-noise ratio of the recovered image in dB",
    "ssim": "structural similarity of the recovered image; 1 is identical",
    "mse": "mean squared error of the pixels",
}

FLAGS: Mapping[str, str] = {flag.name: flag.value for flag in Flag}

INFINITE = 1e299
"""Records hold no infinity; a value of this size stands for it."""

UNKNOWN_FLAG = "This report has no sentence for this flag; it was raised by another version or an extension."

STATUSES: Mapping[str, str] = {
    "EXACT": "certified exact",
    "CONVERGED": "converged",
    "ITERATIONS_SPENT": "iteration limit",
    "BUDGET_SPENT": "time limit",
    "NOTHING_FOUND": "nothing found",
    "UNDECIDED": "cannot tell all",
    "DIVERGED": "diverged",
    "NOT_APPLICABLE": "not applicable",
}


def number(metric: str, value: float) -> str:
    """A value of a metric: a percentage for [0, 1], with unit otherwise. Never rounds to 0 or 100 what is not."""
    if abs(value) >= INFINITE:
        return "∞" if value > 0 else "-∞"
    if metric == "ssim" or metric in UNBOUNDED:
        return {"psnr": f"{value:.1f} dB", "ssim": f"{value:.2f}", "identification_rank": f"{value:.1f}"}.get(
            metric, f"{value:.3g}"
        )
    if 0 < value < 0.005:
        return "<1%"
    if 0.995 <= value < 1:
        return ">99%"
    return f"{100 * value:.0f}%"


def interval(metric: str, score: Pooled) -> str:
    """The 95 % interval as ``48–100%``; a dash where one value leaves nothing to estimate a spread from."""
    if not score.has_interval:
        return "–"
    low, high = number(metric, score.low), number(metric, score.high)
    for unit in ("%", " dB"):
        if low.endswith(unit) and high.endswith(unit):
            low = low.removesuffix(unit)
    return f"{low} to {high}" if set("-<>") & set(low + high) else f"{low}–{high}"


def guarantee(privacy: Mapping[str, Any]) -> str:
    """``ε = 8.1 at δ = 1e-05`` or ``no guarantee``."""
    epsilon = privacy.get("epsilon")
    if epsilon is None:
        return "no guarantee"
    return f"ε = {_round_up(float(epsilon))} at δ = {float(privacy.get('delta') or 0):.3g}"


def _round_up(value: float) -> str:
    """Three digits, never below the value: a guarantee must not look better than it is."""
    if value <= 0:
        return f"{value:g}"
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / unit - 1e-9) * unit:.6g}"


def defense(name: str) -> str:
    return "no defense" if name == "none" else name


def adversary(name: str) -> str:
    return name.replace("_", " ")


def count(amount: int, noun: str) -> str:
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"


def false_positives(cell: Cell) -> str:
    """``3 of 256 tokens wrong, in 2 records``: what was proposed and is not so; empty where that was not recorded."""
    told = [record.status.get("proposed") for record in cell.records]
    known = [one for one in told if one and one["proposed"]]
    if not known:
        return ""
    proposed, wrong, records = (sum(one[key] for one in known) for key in ("proposed", "wrong", "wrong_records"))
    noun = "token" if cell.modality == "text" else "image"
    false = f", {count(records, 'false record')}" if records else ""
    return f"{wrong} of {count(proposed, noun)} wrong{false}{_due_to_prior(cell)}"


def _due_to_prior(cell: Cell) -> str:
    """``; 5 of 40 due to a language prior (2 said by it alone)``: where an attack had one and it was asked."""
    shares = [PriorShare.of(record.status.get("statistics") or {}) for record in cell.records]
    known = [share for share in shares if share is not None]
    if not known:
        return ""
    due, proposed = sum(share.due_to_prior for share in known), sum(share.proposed for share in known)
    alone = sum(share.said_by_prior_alone for share in known)
    return f"; {due} of {proposed} due to a language prior ({alone} said by it alone)"


def statuses(found: Mapping[str, int]) -> str:
    """``converged`` or, where repeats differ, ``converged 3, time limit 2``."""
    if len(found) == 1:
        return STATUSES.get(next(iter(found)), next(iter(found)).lower().replace("_", " "))
    return ", ".join(f"{STATUSES.get(name, name.lower())} {times}" for name, times in found.items())


def flags(found: Mapping[str, int], repeats: int) -> list[str]:
    """Flag names, with ``2/5`` where only some repeats carry the flag."""
    return [name if times == repeats else f"{name} {times}/{repeats}" for name, times in found.items()]
