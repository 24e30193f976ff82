"""The span attack on updates of which only the largest entries were shared: models × batches × shares that survive, fresh seeds.

    python -m benchmarks.span.pruned                  # every cell; resumes from runs/span_pruned
    python -m benchmarks.span.pruned --table          # prints the table again

Two blocks, 8,000 words, random tokens, a classifier's loss. The attack is told the client's settings, batch size and length. A wrong
record is one that is proposed, in order, and no record of the batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.common import run
from benchmarks.span.situations import Row, measure, table

_SEEDS = (40, 41, 42)
_BUDGET_SECONDS = 600.0
_SHARES = (50, 25, 10, 1)
_MODELS = {
    "GPT-2, width 768": ("gpt2", ()),
    "Llama, width 256": ("llama", ()),
    "BERT, width 384": (
        "bert",
        (("hidden_size", 384), ("num_attention_heads", 12), ("intermediate_size", 1536)),
    ),
}
_BATCHES = ((4, 8), (8, 16))


def cells() -> Iterator[Row]:
    for model, (kind, settings) in _MODELS.items():
        for records, length in _BATCHES:
            for share in _SHARES:
                yield Row(
                    group="pruned",
                    what=f"{model}: {records} × {length}, top {share} %",
                    kind=kind,
                    settings=(("num_hidden_layers", 2), ("vocab_size", 8_000), *settings),
                    stage=f"prune(fraction={(100 - share) / 100:g})",
                    records=records,
                    length=length,
                )


def print_page(arguments: argparse.Namespace, recording: run.Recording) -> None:
    results: dict[str, list[dict[str, object]]] = {}
    for seed in _SEEDS:
        for row in cells():
            wanted = arguments.only in row.what and not arguments.table
            work = partial(measure, row, seed, budget=_BUDGET_SECONDS) if wanted else None
            result = recording.cell(arguments.out / f"{row.name}-{seed}.json", work)
            if result is not None:
                results.setdefault(row.what, []).append(result)
    print(table("pruned", results), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/span_pruned"))
    parser.add_argument("--table", action="store_true", help="print the table and measure nothing")
    parser.add_argument("--only", default="", help="part of a row's name")
    arguments = run.parse(parser, argv)
    with run.record(__file__, arguments, seeds=_SEEDS) as recording:
        print_page(arguments, recording)


if __name__ == "__main__":
    main()
