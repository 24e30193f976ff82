"""Writes ``docs/defense_table.md`` from ``results/defenses/sweep.jsonl``: one row for every defense, and the notes' small tests.

    python -m benchmarks.defenses.table

Nothing is measured here. A test holds that the page is what this script makes of the committed lines.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.common import run
from benchmarks.defenses.notes import ELSEWHERE, NOTED, Noted
from benchmarks.defenses.records import Cell, over_seeds, read, text
from gradleak.harness.request import catalogue
from gradleak.harness.utility.training import Interval, drop
from gradleak.privacy.claim import claim
from gradleak.report.conclusions.phrasing import guarantee

PAGE = Path(__file__).parents[2] / "docs" / "defense_table.md"
WHO = ("naive", "informed")
HEAD = """# What every defense leaves, and what it costs

Written by `python -m benchmarks.defenses.table` from the cells that `python -m benchmarks.defenses.sweep` measured
(`benchmarks/results/defenses/sweep.jsonl`); do not edit. Every number is a mean over seeds with Student's 95 % interval,
cut to the values that can be.

"""
LEGEND = """
- **pictures**: PSNR in decibels, from the mean squared error, of what gradient matching brings back of handwritten digits of 16×16
  pixels with known labels; the better of an L2 and a cosine attack by its mean. LeNet with sigmoids; *t* marks a network with
  hyperbolic tangents, *v* a small vision transformer, ·4 batches of four. **Higher leaks more**; below about 10 nothing is to be seen.
- **tokens**: share of the private tokens in what the best of `token_support`, `span` and `sign_span` proposes, two-block text encoder.
- **rank** of the private picture among 180 of its class (of 60 in batches of four; *x*: of the private text among 20), 1 is found; the
  better of two distances. Batches of four are weighed together; MixUp and InstaHide are not modeled there.
- **naive** attackers do not know the defense, **informed** ones do, on the same releases. An informed attack that is worse than the
  naive one is a weak attack: read the better of the two.
- **accuracy** of a short federated training with the defense; in brackets the *drop* at equal seeds. Text: 60 rounds, digits: a vision
  transformer, 120 rounds; "too slow to train" is more than a processor minute. *time* and *memory* (peak of one client's tensors) are those of the text training, else of the digits, in units
  of the training without a defense.
- **ε** is of one release; "no guarantee" where nothing is proved. All else in this table is an attack that was tried, not a bound.
"""


def page(cells: Sequence[Cell]) -> str:
    """The whole page."""
    order = list(dict.fromkeys(cell.defense for cell in cells))
    names = sorted((name for name in order if name != "none"), key=str.lower)
    columns = "defense | pictures, naive | informed | tokens, naive | informed | rank, naive | informed | text accuracy (drop)"
    columns += " | digits accuracy (drop) | ε, one release | time × | memory ×"
    lines = [f"| {columns} |", "|" + "---|" * 12]
    lines += [row(name, cells) for name in ("none", *names)]
    noted = [
        "| test | notes | here | seeds |",
        "|---|---|---|---|",
        *(note for each in NOTED if (note := compared(each, cells))),
    ]
    return "\n".join(
        [
            HEAD + "## One table",
            "",
            seeds(cells),
            "",
            *lines,
            LEGEND,
            "## The small tests of the notes beside ours",
            "",
            "The notes measured one to six pictures; their settings of the attacks are their own (more iterations, float64).",
            "",
            *noted,
            "",
            "Ours balances tensors (each divided by its norm), so the exact layers below PRECODE's code count as much as what lies",
            "behind it. Without that, as published, the naive attack fails as it does in the notes.",
            "",
            "| other tests of the notes | where |",
            "|---|---|",
            *(f"| {what} | `{where}` |" for what, where in ELSEWHERE),
            "",
            origins(cells),
            "",
        ]
    )


def origins(cells: Sequence[Cell]) -> str:
    """The last line of the page: commits, machines and seeds of the cells, and of how many they are not recorded."""
    counts = Counter((cell.commit, cell.machine) for cell in cells)
    places = [
        f"{count} at commit {commit}, {machine}"
        if commit
        else f"{count} at a commit and on a machine that were not recorded"
        for (commit, machine), count in counts.items()
    ]
    return f"Cells measured: {'; '.join(places)}; {run.seeds_in_words([cell.seed for cell in cells])}."


def seeds(cells: Sequence[Cell]) -> str:
    """How often everything was measured: a sentence for who reads a number without an interval."""
    counts: dict[str, set[int]] = {}
    for measure in dict.fromkeys(cell.measure for cell in cells):
        own = [cell for cell in cells if cell.measure == measure and cell.values]
        by_defense = {cell.defense: sum(each.defense == cell.defense for each in own) for cell in own}
        counts[measure] = set(by_defense.values()) or {0}
    parts = [f"{measure} {min(n)}–{max(n)}" if len(n) > 1 else f"{measure} {min(n)}" for measure, n in counts.items()]
    return f"Cells per defense so far: {', '.join(parts)}. A number without an interval has one seed; a dash was not measured."


POSSIBLE = {"pictures": (-math.inf, math.inf), "texts": (0.0, 1.0), "rank": (1.0, math.inf)}
"""Values that a measure can take."""


def row(defense: str, cells: Sequence[Cell]) -> str:
    """One line of the table."""
    own = [cell for cell in cells if cell.defense == defense]
    if defense == "none":
        own = [cell for cell in own if cell.records == 1 or cell.measure in ("topics", "digits")]
    parts = [f"`{defense}`"]
    for measure, digits in (("pictures", 1), ("texts", 2), ("rank", 1)):
        parts += [leak(own, measure, who, digits) for who in WHO]
    parts += [accuracy(defense, task, cells) for task in ("topics", "digits")]
    stages = () if defense == "none" else catalogue.make_stages(defense)
    parts += [guarantee(claim(stages)), *(ratio(defense, name, cells) for name in ("seconds", "peak bytes"))]
    return "| " + " | ".join(parts) + " |"


def leak(own: Sequence[Cell], measure: str, who: str, digits: int) -> str:
    """The best attack of one kind of attacker; for ranks the smallest mean, for all else the largest."""
    found = [cell for cell in own if cell.measure == measure]
    if measure == "rank":
        found = _one_world(found)
    names = dict.fromkeys(name for cell in found for name in cell.values if name.endswith(f", {who}"))
    means = [mean for name in names if (mean := over_seeds(found, name)) is not None]
    if not means:
        return "does not apply" if any(cell.reason for cell in found) else "–"
    best = (min if measure == "rank" else max)(means, key=lambda each: each.value)
    return text(best, digits, within=POSSIBLE[measure]) + _marks(found, measure)


def _one_world(found: list[Cell]) -> list[Cell]:
    """Ranks among pictures where there are any, else among texts."""
    pictures = [cell for cell in found if cell.net != "text"]
    return pictures or found


def _marks(found: Sequence[Cell], measure: str) -> str:
    held = next(cell for cell in found if cell.values)
    mark = {"tanh": " *t*", "random:vit": " *v*", "vit": " *v*"}.get(held.net, "")
    if measure == "rank" and held.net == "text":
        mark = " *x*"
    return mark + (f" ·{held.records}" if held.records > 1 else "")


def accuracy(defense: str, task: str, cells: Sequence[Cell]) -> str:
    """Accuracy with its interval, and the mean drop at equal seeds."""
    found, plain = (_by_seed(cells, name, task, "accuracy") for name in (defense, "none"))
    if not found:
        reasons = [c for c in cells if (c.measure, c.defense) == (task, defense) and c.reason]
        if any(cell.values for cell in reasons):
            return "too slow to train"
        return "does not apply" if reasons else "–"
    mean = text(
        over_seeds([c for c in cells if (c.measure, c.defense) == (task, defense)], "accuracy"), 2, within=(0.0, 1.0)
    )
    if defense == "none" or not found.keys() & plain.keys():
        return mean
    return f"{mean} ({_signed(drop(found, plain))})"


def ratio(defense: str, name: str, cells: Sequence[Cell]) -> str:
    """A cost in units of the undefended training, over the seeds that both have: text first, else digits."""
    for task in ("topics", "digits"):
        found, plain = (_by_seed(cells, each, task, name) for each in (defense, "none"))
        both = sorted(found.keys() & plain.keys())
        if both and sum(plain[seed] for seed in both) > 0:
            return f"{sum(found[seed] for seed in both) / sum(plain[seed] for seed in both):.1f}"
    return "–"


def compared(noted: Noted, cells: Iterable[Cell]) -> str:
    """One line of the second table; empty if nothing was measured."""
    own = [cell for cell in cells if (cell.measure, cell.defense) == (noted.measure, noted.defense)]
    own = [cell for cell in own if cell.records == 1 and cell.net != "text"]
    found = over_seeds(own, noted.value)
    if found is None:
        return ""
    unit = "" if noted.measure == "rank" else " dB"
    return f"| {noted.what} | {noted.number} | {text(found)}{unit} | {found.n} |"


def _by_seed(cells: Sequence[Cell], defense: str, task: str, name: str) -> Mapping[int, float]:
    own = [cell for cell in cells if (cell.measure, cell.defense) == (task, defense)]
    return {cell.seed: cell.values[name] for cell in own if name in cell.values}


def _signed(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:+.2f}"
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def main() -> None:
    PAGE.write_text(page(read()), encoding="utf-8")
    print(f"{PAGE.name}: {len(read())} cells")


if __name__ == "__main__":
    main()
