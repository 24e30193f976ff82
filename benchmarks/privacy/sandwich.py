"""The chain attack ≤ Bayes ≤ instance ≤ mechanism beside the note it was built from, and the tables behind it.

    python -m benchmarks.privacy.sandwich

Deterministic. The note's toy is a two-layer causal model of 164,480 parameters with other random weights and sentences;
ours has as many parameters. Both clip at the median norm of the candidates.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import norm

from benchmarks.common import run
from gradleak.core.batch import Batch
from gradleak.mechanics.client.gram import gram_matrix
from gradleak.models import load_subject
from gradleak.privacy.accounting import reconstruction
from gradleak.privacy.bounds import bayes, bound_chain
from gradleak.privacy.bounds.candidates import Candidates

SETTINGS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 990, "n_positions": 16}
CANDIDATES, TOKENS = 512, 12
NOTE = {
    ("sentences", 0.1): "1.000, 1.000, 1.000, 1.000",
    ("sentences", 0.2): ".942, .944, .972, .983",
    ("sentences", 0.3): ".563, .563, .630, .673",
    ("sentences", 0.5): ".150, .151, .172, .188",
    ("sentences", 1.0): ".023, .024, .028, .030",
    ("token", 0.1): ".761, .763, .854, 1.000",
    ("token", 0.2): ".148, .149, .190, .983",
    ("token", 0.5): ".016, .017, .019, .188",
    ("token", 1.0): ".006, .006, .0066, .030",
}
BITS = {("sentences", 0.3): "6.24", ("sentences", 0.5): "2.63", ("sentences", 1.0): ".67"}
BITS |= {("token", 0.3): "1.20", ("token", 0.5): ".45", ("token", 1.0): ".11"}


def reconstruction_table() -> None:
    print("\n## Mechanism bound at μ = 1 and for the Laplace mechanism at ε = 1\n")
    print("| κ | Gaussian, ours | note | κ | Laplace, ours | note |\n|---|---|---|---|---|---|")
    laplace = ((0.001, ".00272"), (0.01, ".02718"), (0.1, ".27183"), (0.3, ".69343"), (0.6, ".85285"))
    gaussian = ((1e-4, ".003274"), (0.01, ".092362"), (0.1, ".389144"), (0.5, ".841345"), (None, ""))
    for (kappa, note), (other, second) in zip(gaussian, laplace, strict=True):
        ours = "" if kappa is None else f"{reconstruction.gaussian(kappa, 1.0):.6f}"
        print(f"| {kappa or ''} | {ours} | {note} | {other} | {reconstruction.laplace(other, 1.0):.5f} | {second} |")


def orthogonal_table() -> None:
    note = {
        2: (".760", ".921", ".983", ".998", "1"),
        10: (".341", ".674", ".903", ".983", ".998"),
        1000: (".0166", ".120", ".412", ".764", ".951"),
        50257: (".0009", ".0154", ".118", ".413", ".771"),
    }
    print("\n## Bayes success among K orthogonal candidates / mechanism bound (note's Bayes success)\n")
    print("| K | " + " | ".join(f"μ = {mu}" for mu in range(1, 6)) + " |\n|" + "---|" * 6)
    for count, values in note.items():
        cells = [
            f"{bayes.orthogonal(count, mu):.4f} / {float(norm.cdf(norm.ppf(1 / count) + mu)):.4f} ({value})"
            for mu, value in zip(range(1, 6), values, strict=True)
        ]
        print(f"| {count} | " + " | ".join(cells) + " |")


def listed(prior: str, vocabulary: int) -> Batch:
    rng = torch.Generator().manual_seed(0)
    if prior == "sentences":
        ids = torch.randint(vocabulary, (CANDIDATES, TOKENS), generator=rng)
    else:
        ids = torch.randint(vocabulary, (1, TOKENS), generator=rng).repeat(CANDIDATES, 1)
        ids[:, 5] = torch.randperm(vocabulary, generator=rng)[:CANDIDATES]
    return Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=ids)


def chain_table() -> None:
    subject = load_subject("random:gpt2", loss="causal-lm", settings=SETTINGS, seed=0)
    size = sum(parameter.numel() for parameter in subject.trainable().values())
    print(f"\n## The chain: P = {size:,}, K = {CANDIDATES}, {TOKENS} tokens, C = median norm, 20,000 draws, 99 %\n")
    for prior in ("sentences", "token"):
        start = time.process_time()
        gram = gram_matrix(subject, listed(prior, subject.classes), tuple(subject.trainable()))
        norms = gram.diagonal().sqrt()
        scale = (norms.median() / norms).clamp(max=1.0) / norms.median()
        candidates = Candidates.uniform((gram * torch.outer(scale, scale)).numpy()).merged()
        print(
            f"\n{prior}: {candidates.count} differ; Gram matrix in {time.process_time() - start:.0f} CPU s on this machine\n"
        )
        print(
            "| z | cosine match | Bayes | interval | instance | mechanism | bits of 9 | cap on bits | violations | note: cosine, Bayes, instance, mechanism | note: bits |"
        )
        print("|" + "---|" * 11)
        rng = np.random.default_rng(1)
        for z in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0):
            step = bound_chain.rung(candidates, z, rng)
            best = step.best
            print(
                f"| {z:g} | {best.matched.value:.4f} | {best.success.value:.4f} | [{best.success.low:.4f}, "
                f"{best.success.high:.4f}] | {step.instance:.4f} | {step.mechanism:.4f} | {best.bits:.2f} | {step.bits_cap:.2f} | "
                f"{len(bound_chain.violations(step, {}))} | {NOTE.get((prior, z), '–')} | {BITS.get((prior, z), '–')} |"
            )


def print_page() -> None:
    torch.set_num_threads(1)
    print("# The sandwich of attack and bound")
    reconstruction_table()
    orthogonal_table()
    chain_table()


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=(0,)):
        print_page()


if __name__ == "__main__":
    main()
