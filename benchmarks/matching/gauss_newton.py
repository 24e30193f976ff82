"""Gauss–Newton beside DLG (L-BFGS) on the same observations: tokens or pixels recovered, final objective, CPU seconds.

    python -m benchmarks.matching.gauss_newton

Batch size 1, plain gradient, labels and lengths known as in most published settings. Two models with random weights (2
layers, width 64) and a vision one, three records each. Then error bounds of MiniLM (demo extra) by products only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

from benchmarks.common import run
from gradleak.attacks.dlg import DLG
from gradleak.attacks.gauss_newton import GaussNewton
from gradleak.core.attack import Attack
from gradleak.core.batch import Batch, soft_labels
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.derivatives.jacobian import update_jacobian
from gradleak.models import Subject, load_subject
from gradleak.theory.error.bounds import estimated_bounds

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ATTACKS: dict[str, Attack] = {
    "gauss_newton": GaussNewton(),
    "gauss_newton(space=all)": GaussNewton(space="all"),
    "dlg": DLG(),
}


def batch_of(subject: Subject, seed: int) -> Batch:
    rng = derive(seed, "record")
    if subject.modality == "image":
        pixels, mask = torch.rand(1, *subject.pixel_shape, generator=rng), torch.ones(1, dtype=torch.bool)
        return Batch(inputs=pixels, mask=mask, labels=torch.tensor([seed % 2]))
    ids = torch.randint(10, 1000, (1, 8), generator=rng)
    labels = ids if subject.loss.name == "causal-lm" else torch.tensor([seed % 2])
    return Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)


def compare(name: str, subject: Subject, batches: list[Batch]) -> None:
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    for label, attack in ATTACKS.items():
        hits, objectives, started = [], [], time.process_time()
        for number, batch in enumerate(batches):
            text = batch.modality == "text"
            facts = {"subject": subject, "trainer": trainer, "stages": (), "batch_size": 1, "mask": batch.mask}
            facts |= {"labels": batch.labels} if subject.loss.name == "classification" else {}
            facts |= {"seq_len": batch.inputs.shape[1]} if text else {}
            update = trainer.update(batch, derive(number, "train"))
            found = attack(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(number, "attack"))
            objectives.append(found.objective or 0.0)
            truth, guess = batch.records()[0], found.records[0]
            if text:
                same = sum(int(a == b) for a, b in zip(truth.tolist(), guess.tolist(), strict=False))
                hits.append(same / len(truth))
            else:
                hits.append(float((truth - guess).square().mean()))
        seconds = (time.process_time() - started) / len(batches)
        median = sorted(objectives)[len(objectives) // 2]
        score = sum(hits) / len(hits)
        print(f"| {name} | `{label}` | {score:.3f} | {median:.1e} | {seconds:.1f} |", flush=True)


def bounds(name: str, subject: Subject, batch: Batch) -> None:
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    inputs = subject.embed(batch.inputs).detach()
    started = time.process_time()
    jacobian = update_jacobian(trainer, inputs, soft_labels(batch.labels, subject.classes), batch.mask)
    size = sum(float(t.double().square().sum()) for t in jacobian.update.values()) ** 0.5
    spread = float(inputs.std())
    for multiplier in (1e-4, 1e-3, 1e-2):
        found = estimated_bounds(
            jacobian, sigma=multiplier * size, prior_std=spread, rng=derive(0, "probes"), probes=3, steps=24
        )
        low, high = (getattr(found.with_prior, side) / spread**2 for side in ("lower", "upper"))
        error = found.with_prior.standard_error / spread**2
        print(f"| {name} | {inputs.numel()} | {multiplier:g} | {low:.3f} | {high:.3f} | {error:.3f} |", flush=True)
    print(f"\n{time.process_time() - started:.0f} CPU seconds for {inputs.numel()} unknowns, {size:.2g} gradient norm.")


def attacks() -> None:
    print("# Gauss–Newton beside DLG\n\nPrinted by `python -m benchmarks.matching.gauss_newton`.\n")
    print("Score: share of tokens in place, or mean squared error of pixels (a constant gray image has 0.083).\n")
    print("| model | attack | score | objective, median | CPU seconds per record |\n|---|---|---|---|---|")
    for model, loss in (("bert", "classification"), ("gpt2", "causal-lm"), ("vit", "classification")):
        extra = {"image_size": 16, "patch_size": 8} if model == "vit" else {"vocab_size": 1000}
        subject = load_subject(f"random:{model}", loss=loss, settings=SMALL | extra)
        compare(f"random:{model}", subject, [batch_of(subject, seed) for seed in range(3)])


def floors() -> None:
    minilm = load_subject("minilm", loss="classification")
    assert minilm.tokenizer is not None
    ids, mask = minilm.tokenizer.encode(["the patient was admitted with chest pain ."], 32)
    print("\n## Error of the first-order attacker with a prior, MiniLM, by products only\n")
    print(
        "In units of the prior variance: 0 is exact, 1 is no better than the prior. Noise is in units of the gradient's"
    )
    print("norm. Bracket of Lanczos quadrature (24 steps) and the standard error over 3 probes.\n")
    print("| model | unknowns | noise multiplier | lower | upper | standard error |\n|---|---|---|---|---|---|")
    bounds("MiniLM", minilm, Batch(inputs=ids, mask=mask, labels=torch.tensor([1])))


def print_page(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    for name in asked.only.split(","):
        {"attacks": attacks, "floors": floors}[name]()


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--only", default="attacks,floors", help="comma-separated parts; floors needs the demo extra")
    asked = run.parse(parser, argv)
    with run.record(__file__, asked, seeds=range(3)):
        print_page(asked)


if __name__ == "__main__":
    main()
