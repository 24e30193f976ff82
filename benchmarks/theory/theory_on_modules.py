"""Predictions on Hugging Face modules beside measurement: error law, influence, recall of ``token_span``; and what an ε leaves
of a reconstruction. Draws docs/theory/token-recall.svg.

    python -m benchmarks.theory.theory_on_modules

Modules with random weights; the agreement tests hold the same predictions on other draws. About three CPU minutes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import run
from benchmarks.common.chart import Axis, Series, write_chart
from gradleak.attacks.span import Span
from gradleak.attacks.token_span import TokenSpan
from gradleak.core.attack import Attack
from gradleak.core.batch import Batch, soft_labels
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.defenses.clip import Clip
from gradleak.defenses.gaussian import Gaussian
from gradleak.mechanics.attention.softmax import Attention, data_jacobian
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.derivatives.jacobian import Jacobian, flatten, update_jacobian
from gradleak.models import Subject, load_subject
from gradleak.privacy.accounting.gaussian import epsilon
from gradleak.theory.error.bounds import exact_bounds
from gradleak.theory.error.influence import influence
from gradleak.theory.identifiability.gradient_flow import flow_through
from gradleak.theory.identifiability.membership import FirstTest, first_test
from gradleak.theory.noise.forecast import forecast
from gradleak.theory.prediction.stand_in import stand_in_batch

CHART = Path(__file__).parents[2] / "docs" / "theory" / "token-recall.svg"
TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 260}
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 500}
NULL = 1e-5
DRAWS, BATCHES, LAW_DRAWS = 16, 3, 60


def row(*cells: object) -> None:
    print("| " + " | ".join(str(each) for each in cells) + " |", flush=True)


def head(title: str, *cells: str) -> None:
    print(f"\n## {title}\n")
    row(*cells)
    row(*["---"] * len(cells))


def pseudo_inverse(jacobian: Jacobian) -> tuple[Tensor, Tensor]:
    u, s, vt = torch.linalg.svd(jacobian.dense(), full_matrices=False)
    keep = s > NULL * s[0]
    return vt[keep].T @ (u[:, keep] / s[keep]).T, vt[keep]


def error_law() -> None:
    levels = (1e-3, 1e-2, 1e-1)
    head(
        f"Error law and influence: one block of width 8, three tokens, float64, weights 10 times the published scale, {LAW_DRAWS} draws",
        "model",
        "unknowns",
        "directions left out",
        *(f"RMSE measured / predicted at {level:g}" for level in levels),
        "‖dx‖ predicted / measured, noise 0.1 %",
        "the smallest 5 % pruned",
    )
    for kind in ("gpt2", "bert", "llama", "gpt_neox"):
        subject = load_subject(f"random:{kind}", loss="classification", settings=TINY)
        subject.module.double()
        with torch.no_grad():
            for name, value in subject.parameters().items():
                if value.ndim == 2 and name != subject.anatomy.token_embedding:
                    value.mul_(10.0)
        ids = torch.tensor([[5, 9, 11]])
        x, mask = 10 * subject.embed(ids).detach(), torch.ones_like(ids, dtype=torch.bool)
        targets = soft_labels(torch.tensor([1]), subject.classes).double()
        trainer = ClientTrainer(subject=subject, training=LocalTraining())

        def at(
            point: Tensor, *, trainer: ClientTrainer = trainer, targets: Tensor = targets, mask: Tensor = mask
        ) -> Jacobian:
            return update_jacobian(trainer, point, targets, mask)

        truth = at(x)
        clean, (first, seen) = flatten(truth.update), pseudo_inverse(truth)
        per = exact_bounds(truth, sigma=1.0, rank_tolerance=NULL).cramer_rao_seen ** 0.5

        def match(
            change: Tensor, *, at: object = at, x: Tensor = x, clean: Tensor = clean, first: Tensor = first
        ) -> Tensor:
            moved = x + (first @ change).view_as(x)
            for _ in range(2):
                now = at(moved)  # type: ignore[operator]
                gap = flatten(now.update) - clean - change
                moved = moved - (pseudo_inverse(now)[0] @ gap).view_as(x)
            return (moved - x).flatten()

        ratios, rng = [], torch.Generator().manual_seed(3)
        for level in levels:
            sigma = level * float(x.std()) / per
            gaps = [
                (seen @ match(sigma * torch.randn(clean.shape, dtype=clean.dtype, generator=rng))).square().mean()
                for _ in range(LAW_DRAWS)
            ]
            squares = torch.stack(gaps)
            ratio = math.sqrt(float(squares.mean())) / (sigma * per)
            # The square root halves a relative error.
            error = float(squares.std() / squares.mean()) / math.sqrt(LAW_DRAWS) / 2 * ratio
            ratios.append(f"{ratio:.2f} ± {error:.2f}")
        noise = torch.randn(clean.shape, dtype=clean.dtype, generator=rng)
        noise *= 1e-3 * float(x.norm()) / float((first @ noise).norm())
        least = clean.abs()[clean.ne(0)].quantile(0.05)
        told = []
        for change in (noise, torch.where(clean.abs() <= least, -clean, 0.0)):
            parts = change.split([t.numel() for t in truth.update.values()])
            named = {n: p.view_as(t) for (n, t), p in zip(truth.update.items(), parts, strict=True)}
            shift = seen @ influence(truth, named, tolerance=1e-10).shift.flatten()
            told.append(float(shift.norm()) / float((seen @ match(change)).norm()))
        left = x.numel() - len(seen)
        row(kind, x.numel(), left, *ratios, *(f"{r:.3f}" for r in told))


def attack(which: Attack, subject: Subject, batch: Batch, z: float, seed: int) -> float:
    """Share of the batch's distinct tokens that the attack proposes."""
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    channel = Channel(trainer=trainer, stages=(Clip(max_norm=1e-3), Gaussian(noise_multiplier=z)))
    facts = {"subject": subject, "trainer": trainer, "stages": channel.stages}
    facts |= {"batch_size": batch.size, "seq_len": batch.inputs.shape[1]}
    released = channel.observe(batch, derive(seed, "channel"))
    found = which(Observation(update=released, knowledge=Knowledge(facts=facts)), rng=derive(seed, "attack"))
    bag, truth = {t for record in found.records for t in record.tolist()}, set(batch.inputs.flatten().tolist())
    return len(bag & truth) / len(truth)


def recalls() -> None:
    head(
        f"Recall of tokens, predicted and measured: width 128, 2 blocks, 500 tokens, {BATCHES} batches of 4 × 8, {DRAWS} draws each",
        "model",
        "noise multiplier",
        "token_span predicted",
        "token_span measured",
        "span measured (first draw of each)",
        "token test told the others (predicted)",
    )
    series = []
    levels = {"gpt2": (1e-5, 3e-5, 1e-4, 3e-4), "llama": (3e-5, 1e-4, 3e-4, 1e-3), "bert": (1e-7, 1e-6, 3e-6, 1e-5)}
    for kind, steps in levels.items():
        told, seen = [], []
        for z in steps:
            predicted, measured, ordered, capped = 0.0, 0.0, 0.0, 0.0
            for seed in range(BATCHES):
                subject = load_subject(f"random:{kind}", loss="classification", seed=10 + seed, settings=SMALL)
                batch = stand_in_batch(subject, batch_size=4, seq_len=8, seed=10 + seed)
                maps = subject.anatomy.blocks[0].attention_inputs
                flows = flow_through(subject, batch, [m.module for m in maps])
                update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "gradient"))
                norm = math.sqrt(sum(float(t.double().square().sum()) for t in update.values()))
                stds = [z * norm] * len(maps)
                found = first_test(subject, batch, flows, noise_std=stds, dtype=torch.float32, seed=seed, draws=DRAWS)
                assert isinstance(found, FirstTest)
                predicted += found.recall / BATCHES
                measured += (
                    sum(attack(TokenSpan(), subject, batch, z, 100 * seed + d) for d in range(DRAWS)) / DRAWS / BATCHES
                )
                ordered += attack(Span(), subject, batch, z, 100 * seed) / BATCHES
                flow = flows[maps[-1].module]
                test = forecast(
                    maps[-1].weight,
                    flow.inputs[batch.mask],
                    flow.errors[batch.mask],
                    unit=norm,
                    noise=z,
                    extra_std=0.0,
                    update_norm=norm,
                    candidates=subject.anatomy.vocab_size * (1 if kind == "llama" else 8),
                )
                capped += test.recall / BATCHES
            row(kind, f"{z:g}", f"{predicted:.3f}", f"{measured:.3f}", f"{ordered:.3f}", f"{capped:.3f}")
            told.append((z, predicted))
            seen.append((z, measured))
        series += [
            Series(label=f"{kind}: predicted", points=told),
            Series(label=f"{kind}: measured", points=seen, dots=True),
        ]
    write_chart(
        CHART,
        title="Tokens found by token_span under Gaussian noise",
        x=Axis(label="noise multiplier (noise per entry over the norm of the update)", log=True),
        y=Axis(label="share of the batch's tokens", low=0.0, high=1.0),
        series=series,
    )


def budget() -> None:
    """Founding note, section 2.4: one release with C the norm, δ = 1e-5, n = 4, d = 8, prior N(0, 1)."""
    noted = {1e-3: 0.008, 1e-2: 0.074, 3e-2: 0.26, 0.1: 0.65, 0.3: 0.92, 1.0: 0.90}
    head(
        "ε of one release against the error of a reconstruction (n = 4, d = 8, δ = 1e-5, prior N(0, 1), 20 instances)",
        "noise multiplier",
        "ε",
        "RMSE measured, started at the truth",
        "noted",
        "predicted with the prior",
    )
    for z, note in noted.items():
        errors, predicted = [], []
        for seed in range(20):
            g = torch.Generator().manual_seed(seed)
            x, b, w, v = (
                torch.randn(*s, dtype=torch.float64, generator=g) for s in ((4, 8), (4, 8), (1, 8, 8), (1, 8, 8))
            )
            layer = Attention(scores=w / math.sqrt(8), values=v / math.sqrt(8), scale=1 / math.sqrt(8))
            clean = layer.at(x, b).gradient().flat()
            sigma = z * float(clean.norm())
            target = clean + sigma * torch.randn(clean.shape, dtype=clean.dtype, generator=g)
            errors.append((_posterior_mode(layer, x, b, target, sigma) - x).square().mean())
            bounds = exact_bounds(data_jacobian(layer.at(x, b)), sigma=sigma, prior_std=1.0)
            predicted.append(bounds.with_prior or 0.0)
        rmse = math.sqrt(float(torch.stack(errors).mean()))
        row(f"{z:g}", f"{epsilon(z, 1e-5):.3g}", f"{rmse:.3f}", note, f"{math.sqrt(sum(predicted) / 20):.3f}")


def _posterior_mode(layer: Attention, x: Tensor, b: Tensor, target: Tensor, sigma: float) -> Tensor:
    def value(x: Tensor) -> float:
        return float((layer.at(x, b).gradient().flat() - target).square().sum() / sigma**2 + x.square().sum())

    best = value(x)
    for _ in range(60):
        point = layer.at(x, b)
        j = data_jacobian(point)
        matrix = j.T @ j + sigma**2 * torch.eye(x.numel(), dtype=x.dtype)
        slope = j.T @ (point.gradient().flat() - target) + sigma**2 * x.flatten()
        step = torch.linalg.solve(matrix, slope).view_as(x)
        while value(x - step) > best and float(step.norm()) > 1e-12:
            step = step / 4
        x, best = x - step, min(best, value(x - step))
    return x


def print_page() -> None:
    torch.set_num_threads(1)
    started = time.process_time()
    print("# Theory on real modules\n")
    print(
        "Printed by `python -m benchmarks.theory.theory_on_modules`, which also draws `docs/theory/token-recall.svg`."
    )
    error_law()
    recalls()
    budget()
    print(f"\n{time.process_time() - started:.0f} CPU seconds, one thread.")


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=None):
        print_page()


if __name__ == "__main__":
    main()
