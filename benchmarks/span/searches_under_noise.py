"""Two searches answer one question under noise; one yardstick for both.

    python -m benchmarks.span.searches_under_noise

Setting, texts and batches are those of `benchmarks.span.prior`. **joint** is `span` as it is without a prior, **posterior** the search that
maximizes the update's marginal likelihood with no preference among texts (`prior=uniform`), started from what the joint search proposed, **good** the same with
counts of public text. **in place** is the share of private tokens that stand in their place, records matched one-to-one, for ordered answers; an answer
without order has none in place. **as a bag** is the share of private tokens, with multiplicity, that are proposed at all, ordered or not; **precision** the
share of proposed tokens that are among the private ones, as bags. Intervals are Student's over batches (95 %) of the difference to *joint*.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch

from benchmarks.common import run
from benchmarks.span.noise import with_interval
from benchmarks.span.prior import LENGTH, RECORDS, SECONDS, SIZES, Hits, Texts, make_batch
from gradleak.attacks.span import Span
from gradleak.core.attack import Clock, Reconstruction
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.defenses.gaussian import Gaussian
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

SEARCHES = ("joint", "posterior", "good")


def bag_overlap(reconstruction: Reconstruction, batch: Batch) -> tuple[int, int, int]:
    """Tokens in both bags with multiplicity, proposed tokens, private tokens."""
    proposed = Counter(token for record in reconstruction.records for token in record.tolist())
    private = Counter(token for record in batch.records() for token in record.tolist())
    return (proposed & private).total(), proposed.total(), private.total()


def measure(subject: Subject, texts: Texts, noise: float, seed: int, searches: Sequence[str]) -> dict[str, float]:
    """One batch under one noise level, by every search."""
    batch = make_batch(texts, subject.loss, seed)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed, "training"))
    released = Gaussian(relative_std=noise).apply(update, derive(seed, "noise", noise))
    facts = {"subject": subject, "batch_size": RECORDS, "seq_len": LENGTH}
    observation = Observation(update=released, knowledge=Knowledge(facts=facts))
    row: dict[str, float] = {}
    for name in searches:
        prior = {"joint": None, "posterior": "uniform"}.get(name, texts.files.get(name))
        began = time.process_time()
        reconstruction = Span(prior=prior)(observation, rng=derive(seed, "attack"), clock=Clock(SECONDS))
        row[f"{name} seconds"] = time.process_time() - began
        ordered = reconstruction.records if reconstruction.ordered else ()
        hits = Hits.of(ordered, batch, hidden=int(subject.loss.name == "causal-lm"))
        common, proposed, private = bag_overlap(reconstruction, batch)
        row |= {f"{name} place": hits.recall, f"{name} whole": hits.whole, f"{name} bag": common / private}
        row |= {f"{name} common": common, f"{name} proposed": proposed}
    return row


def report(subject: Subject, texts: Texts, asked: argparse.Namespace) -> None:
    """The table of one loss."""
    print(f"\n## Loss {subject.loss}\n")
    print("| noise | batches | search | in place | − joint | as a bag | − joint | precision | whole records | CPU s |")
    print("|---" * 10 + "|")
    for noise in asked.levels:
        rows = [measure(subject, texts, noise, seed, asked.searches) for seed in range(*asked.seeds)]
        for name in asked.searches:
            gaps = [
                "" if name == "joint" else with_interval([row[f"{name} {kind}"] - row[f"joint {kind}"] for row in rows])
                for kind in ("place", "bag")
            ]
            total = {kind: sum(row[f"{name} {kind}"] for row in rows) for kind in ("whole", "common", "proposed")}
            place, bag = (mean(row[f"{name} {kind}"] for row in rows) for kind in ("place", "bag"))
            precision = total["common"] / max(1.0, total["proposed"])
            seconds = mean(row[f"{name} seconds"] for row in rows)
            print(
                f"| {noise:g} | {len(rows)} | {name} | {place:.3f} | {gaps[0]} | {bag:.3f} | {gaps[1]} | {precision:.3f} "
                f"| {total['whole']:.0f} of {RECORDS * len(rows)} | {seconds:.1f} |",
                flush=True,
            )


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--seeds", nargs=2, type=int, default=(200, 206), metavar=("FIRST", "END"))
    parser.add_argument("--levels", nargs="*", type=float, default=(0.1, 0.3, 1.0, 2.0))
    parser.add_argument("--losses", nargs="*", default=("causal-lm", "classification"))
    parser.add_argument("--searches", nargs="*", choices=SEARCHES, default=SEARCHES)
    asked = run.parse(parser, argv)
    torch.set_num_threads(1)
    with run.record(__file__, asked, seeds=range(*asked.seeds)), tempfile.TemporaryDirectory() as folder:
        print("# Two searches under noise, one yardstick\n")
        print(
            "Printed by `python -m benchmarks.span.searches_under_noise`, whose first lines say what the columns are."
        )
        for loss in asked.losses:
            subject = load_subject("random:gpt2", loss=loss, settings=SIZES)
            report(subject, Texts.of(subject, Path(folder)), asked)


if __name__ == "__main__":
    main()
