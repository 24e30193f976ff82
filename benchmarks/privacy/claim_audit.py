"""The tables of the audit: what counts can prove, known mistakes against the conformance test, canaries against one step.

    python -m benchmarks.privacy.claim_audit

Deterministic. Columns marked "note" are the numbers of the derivations that the code was written from, made with other
software and other random draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.common import run
from gradleak.core.batch import Batch
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject
from gradleak.privacy.accounting import gaussian, reconstruction
from gradleak.privacy.auditing import lower_bounds as auditing
from gradleak.privacy.auditing.canaries import SquareLoss
from gradleak.privacy.auditing.one_step import audit_step, releases_needed
from gradleak.privacy.bounds import bayes
from gradleak.privacy.bounds.bayes import Rate
from tests.support.planted_bugs import BUGS, CORRECT, Claim, examine, flagged, predict

DELTA = 1e-5
SETTINGS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 260, "n_positions": 16}


def ceilings() -> None:
    print("\n## What membership can prove at most: no error in n trials of each world, 95 %\n")
    print("| n | ε, ours | ε, note |\n|---|---|---|")
    for n, note in ((100, 3.28), (1000, 5.60), (10_000, 7.90), (100_000, 10.21)):
        print(f"| {n} | {auditing.membership_epsilon(n, n, 0, n, significance=0.05, delta=0.0):.2f} | {note} |")


def k_way() -> None:
    print("\n## K-way audit, 1,000 games at the optimal success, 95 %, δ = 1e-5\n")
    print(
        "| K | μ | true ε | optimal success | μ_lo | ε_lo | ε_lo, any mechanism | note: μ_lo, ε_lo |\n|---|---|---|---|---|---|---|---|"
    )
    for count, mu, note in (
        (2, 2, "1.31, 6.0"),
        (16, 2, "1.70, 8.2"),
        (256, 2, "1.82, 8.9"),
        (256, 4, "3.67, 21.7"),
        (50257, 4, "3.82, 22.9"),
    ):
        success = bayes.orthogonal(count, mu)
        hits = round(1000 * success)
        low = auditing.reconstruction_mu(hits, 1000, 1 / count, significance=0.05)
        free = auditing.reconstruction_epsilon(hits, 1000, 1 / count, significance=0.05, delta=DELTA)
        print(
            f"| {count} | {mu} | {gaussian.epsilon(1 / mu, DELTA):.1f} | {success:.3f} | {low:.2f} | "
            f"{auditing.epsilon_of_mu(low, DELTA):.1f} | {free:.1f} | {note} |"
        )


def toy(count: int = 256, tokens: int = 8) -> Claim:
    """A random two-layer causal model on random sentences, claimed z = 0.5.

    C is half the smallest norm: a forgotten clip can only show where the clip does something.
    """
    subject = load_subject("random:gpt2", loss="causal-lm", settings=SETTINGS, seed=0)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    ids = torch.randint(subject.classes, (count, tokens), generator=torch.Generator().manual_seed(0))
    rows: list[np.ndarray] = []
    sizes: dict[str, int] = {}
    for one in ids:
        batch = Batch(inputs=one[None], mask=torch.ones(1, tokens, dtype=torch.bool), labels=one[None])
        rows.append(
            torch.cat([tensor.flatten() for tensor in trainer.update(batch, torch.Generator()).values()]).numpy()
        )
    for name in trainer.names():
        block = ".".join(name.split(".")[:3]) if ".h." in name else name.rpartition(".")[0]
        sizes[block] = sizes.get(block, 0) + subject.parameters()[name].numel()
    ends = np.cumsum(list(sizes.values()))
    table = subject.anatomy.token_embedding
    assert table is not None
    gradients = np.stack(rows).astype(np.float64)
    return Claim(
        gradients=gradients,
        blocks={name: slice(int(end) - sizes[name], int(end)) for name, end in zip(sizes, ends, strict=True)},
        table=table.rpartition(".")[0],
        clip=float(np.linalg.norm(gradients, axis=1).min()) / 2,
        noise_multiplier=0.5,
    )


NOTE = {
    "correct": ".209, .78; .214, .65",
    "noise x0.9": ".298, 3e-9",
    "noise x0.7": ".505, 1e-87",
    "noise x0.5": ".862, ~0",
    "embedding left un-noised": "1.000, ~0",
    "per-layer clip at C each": ".999, ~0",
    "no clip": "1.000, ~0",
    "two releases accounted as one": ".514, 1e-92",
}


def zoo(audits: int = 20, correct: int = 200, significance: float = 0.01) -> None:
    """One audit of 1,000 releases is one draw, so every mechanism is audited many times and the flags are counted."""
    claim, rng = toy(), np.random.default_rng(2026)
    predicted = predict(claim, rng)
    rate = predicted[""][1]
    bound = reconstruction.gaussian(1 / len(claim.gradients), 2.0)
    print(
        f"\n## Bug zoo: K = {len(claim.gradients)}, P = {claim.gradients.shape[1]:,}, claimed z = 0.5 (μ = 2), "
        f"1,000 releases an audit, {1 - significance:.0%}\n"
    )
    print(
        f"Predicted Bayes {rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}] (note .219), mechanism bound {bound:.4f} (note .2546)."
    )
    print(f"{len(predicted)} views: the whole update and {', '.join(claim.blocks)}.\n")
    print(
        "| mechanism | accuracy, mean over audits | p on the whole, median | view flagged most | μ_lo, median | "
        "audits flagged | note: accuracy, p (one audit) |"
    )
    print("|---" * 7 + "|")
    for name, species in {"correct": CORRECT, **BUGS}.items():
        count = correct if species is CORRECT else audits
        runs = [examine(claim, species, predicted, rng, trials=1000, significance=significance) for _ in range(count)]
        whole = [run[""] for run in runs]
        view = min(predicted, key=lambda each, runs=runs: float(np.mean([run[each].p_value for run in runs])))
        flags = Rate.of(sum(map(flagged, runs)), count, 0.95)
        print(
            f"| {name} | {np.mean([each.measured.value for each in whole]):.4f} | "
            f"{np.median([each.p_value for each in whole]):.2g} | {view or 'whole'} | "
            f"{np.median([each.mu_lower for each in whole]):.2f} | "
            f"{flags.hits} of {count} [{flags.low:.3f}, {flags.high:.3f}] | {NOTE.get(name, '–')} |",
            flush=True,
        )


def canaries(audits: int = 40) -> None:
    rng = np.random.default_rng(2026)
    weights = 0.3 * rng.standard_normal(10)
    loss = SquareLoss(weights=weights, x_bound=1.0, y_bound=1.0)
    x = rng.standard_normal((200, 10))
    x *= rng.random((200, 1)) ** 0.1 / np.linalg.norm(x, axis=1, keepdims=True)
    gradients = (x @ weights - rng.uniform(-1, 1, 200))[:, None] * x
    clip = 0.5
    triggers = {
        "median record": gradients[int(np.argsort(np.linalg.norm(gradients, axis=1))[100])],
        "RiskWarp": loss.risk_warp(0.2, 200).gradient,
        "GradWarp": loss.gradient_warp(gradients.mean(0), 200).gradient,
        "GradDistWarp": loss.distribution_warp(np.eye(10), clip).gradient,
    }
    print(f"\n## One noisy step with and without a canary: d = 10, C = {clip}, {audits} audits a row, 99 %\n")
    print("Releases of each world: as many as a share of .95 takes in expectation (`releases_needed`).\n")
    print(
        "| canary | step | z | releases | claimed μ | μ in theory | μ_lo, mean | of the claim: mean, least, most | called a violation |"
    )
    print("|---" * 9 + "|")
    for name, trigger in triggers.items():
        for z in (0.5, 1.0, 4.0):
            _row(name, "correct", trigger, clip, z, rng, audits)
    for step in ("clip forgotten", "noise halved", "clip over the batch"):
        for z in (0.5, 1.0, 4.0):
            _row("GradWarp", step, triggers["GradWarp"], clip, z, rng, audits)


def _row(
    name: str, step: str, trigger: np.ndarray, clip: float, z: float, rng: np.random.Generator, audits: int
) -> None:
    """Audits of one step. The batch without the canary is one record whose gradient is -0.6 of the canary's."""
    other = -0.6 * trigger
    count = releases_needed(z)

    def shorten(gradient: np.ndarray) -> np.ndarray:
        return gradient * min(1.0, clip / float(np.linalg.norm(gradient)))

    if step == "clip forgotten":
        sums = (other, other + trigger)
    elif step == "clip over the batch":
        sums = (shorten(other), shorten(other + trigger))
    else:
        sums = (shorten(other), shorten(other) + shorten(trigger))
    std = z * clip * (0.5 if step == "noise halved" else 1.0)
    found = []
    for _ in range(audits):
        without, present = (total + std * rng.standard_normal((count, total.size)) for total in sums)
        found.append(audit_step(present, without, sums[0], trigger, clip=clip, noise_multiplier=z))
    theory = float(np.linalg.norm(sums[1] - sums[0])) / std
    shares = [each.tightness for each in found]
    print(
        f"| {name} | {step} | {z:g} | {count:,} | {1 / z:.3f} | {theory:.3f} | {np.mean([each.mu_lower for each in found]):.3f} | "
        f"{np.mean(shares):.2f}, {min(shares):.2f}, {max(shares):.2f} | {sum(each.violated for each in found)} of {audits} |",
        flush=True,
    )


PARTS = {part.__name__: part for part in (ceilings, k_way, zoo, canaries)}


def print_page(parts: Sequence[str]) -> None:
    torch.set_num_threads(1)
    assert math.isclose(gaussian.epsilon(1.0, DELTA), 4.377178, abs_tol=1e-5)
    print("# Auditing a claim of privacy")
    for part in parts:
        PARTS[part]()


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    reader.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=None):
        print_page(asked.parts)


if __name__ == "__main__":
    main()
