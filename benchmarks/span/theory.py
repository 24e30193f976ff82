"""The laws behind `gradleak predict`, simulated and printed beside what they say, with the plots of docs/theory.

python -m benchmarks.span.theory
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import run
from benchmarks.common.chart import write_lines
from benchmarks.span.toy import recalls
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import LocalTraining
from gradleak.models import load_subject
from gradleak.theory.identifiability.input_kinds import InputLaw
from gradleak.theory.identifiability.rank import token_position_graph
from gradleak.theory.noise import detectability, rounding
from gradleak.theory.noise import detectability as null_law
from gradleak.theory.noise.token_power import TokenTest, mean_power, strengths
from gradleak.theory.prediction.predict import predict
from gradleak.theory.prediction.stand_in import stand_in_batch
from gradleak.theory.prediction.types import Noise

PLOTS = Path(__file__).parents[2] / "docs" / "theory"


def spikes() -> None:
    print("## Detection of a direction in noise (F2)\n")
    print(
        "| rows × columns | s / threshold | λ law | λ seen | cos² left law | seen | cos² right law | seen |\n|---|---|---|---|---|---|---|---|"
    )
    law_line, seen_line = [], []
    for rows, columns in ((256, 256), (256, 768), (768, 256)):
        for times in (0.7, 1.0, 1.3, 1.6, 2.0, 3.0):
            s = times * detectability.threshold(1.0, rows, columns)
            law = detectability.spike(s, 1.0, rows, columns)
            draws = []
            for seed in range(12):
                rng = derive(seed, "spike", rows, columns, times)
                u, v = (torch.nn.functional.normalize(torch.randn(n, generator=rng), dim=0) for n in (rows, columns))
                left, values, right = torch.linalg.svd(
                    s * torch.outer(u, v) + torch.randn(rows, columns, generator=rng)
                )
                draws.append([float(values[0]), float((left[:, 0] @ u) ** 2), float((right[0] @ v) ** 2)])
            value, a, b = torch.tensor(draws).mean(0).tolist()
            print(
                f"| {rows} × {columns} | {times} | {law.singular:.2f} | {value:.2f} | {law.cosine_left:.3f} | {a:.3f} | {law.cosine_right:.3f} | {b:.3f} |"
            )
            if rows == columns:
                law_line.append((times, law.cosine_left))
                seen_line.append((times, a))
    write_lines(
        PLOTS / "detectability.svg",
        "A direction in noise, 256 × 256",
        {"law": law_line, "seen, 12 draws": seen_line},
        x="singular value / threshold",
        y="cos² with the true direction",
        dots=["seen, 12 draws"],
    )


def roundings() -> None:
    print(
        "\n## Rounding as noise (F5)\n\n| format | σ/rms law | seen | 0.408 · 2⁻ᵖ (as noted before) |\n|---|---|---|---|"
    )
    x = torch.randn(1_000_000, generator=derive(0, "rounding"))
    for name, kind in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp8", torch.float8_e4m3fn)):
        seen = float((x.to(kind).float() - x).square().mean().sqrt() / x.square().mean().sqrt())
        old = 0.408 * 2.0 ** -rounding.SIGNIFICANT_BITS[name]
        print(f"| {name} | {rounding.rounding_std(name, 1.0):.3e} | {seen:.3e} | {old:.3e} |")


def null() -> None:
    print("\n## Smallest residual of 50 257 wrong candidates, width 768\n\n| rank | law |\n|---|---|")
    for rank in (64, 256, 512, 700, 748, 760, 767):
        print(f"| {rank} | {null_law.smallest_null_residual(candidates=50_257, rank=rank, width=768):.2g} |")


def token_power() -> None:
    print("\n## Token test: recall predicted and seen (F3), false alarms (F4)\n")
    print(
        "V = 4000, d = 128, m = 384, n = 12, 42 batches (504 tokens). σ in units of the closed-form half-recall noise.\n"
    )
    print(
        "| σ | told the others: predicted | seen | without projection: predicted | greedy pursuit: seen | false alarms per batch |\n|---|---|---|---|---|---|"
    )
    test = TokenTest(columns=384, candidates=4000)
    log = math.log(test.candidates / test.false_alarms)
    unit = (2 * math.sqrt(test.columns * log) + 2 * log) ** -0.5
    lines: dict[str, list[tuple[float, float]]] = {
        "predicted, told the others": [],
        "seen, told the others": [],
        "seen, pursuit": [],
    }
    for times in (0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4):
        row = torch.tensor([_tokens(seed, times * unit, test) for seed in range(42)]).mean(0).tolist()
        predicted, told, raw, pursued, alarms = row
        print(f"| {times} | {predicted:.3f} | {told:.3f} | {raw:.3f} | {pursued:.3f} | {alarms:.2f} |")
        for name, value in zip(lines, (predicted, told, pursued), strict=True):
            lines[name].append((times, value))
    write_lines(
        PLOTS / "token-test.svg",
        "Tokens found in noise",
        lines,
        x="noise / half-recall noise of the closed form",
        y="share of tokens found",
        dots=["seen, told the others", "seen, pursuit"],
    )


def _tokens(seed: int, std: float, test: TokenTest) -> list[float]:
    rng = derive(seed, "tokens", std)
    table = torch.nn.functional.normalize(torch.randn(4000, 128, generator=rng), dim=1)
    batch = torch.randperm(4000, generator=rng)[:12]
    errors = torch.nn.functional.normalize(torch.randn(12, 384, generator=rng), dim=1)
    x = table[batch]
    noisy = x.T @ errors + std * torch.randn(128, 384, generator=rng)
    told = 0
    for i in range(12):
        basis = torch.linalg.qr(x[[j for j in range(12) if j != i]].T).Q
        perp = torch.nn.functional.normalize(x[i] - basis @ (basis.T @ x[i]), dim=0)
        told += float((perp @ noisy).square().sum()) / std**2 > test.threshold
    found: list[int] = []
    candidates, rest = table.clone(), noisy.clone()
    while len(found) < 64:
        score = (candidates @ rest).square().sum(1) / candidates.square().sum(1).clamp(min=1e-9) / std**2
        score[found] = 0.0
        best = int(score.argmax())
        if float(score[best]) <= test.threshold:
            break
        direction = candidates[best] / candidates[best].norm()
        candidates = candidates - torch.outer(candidates @ direction, direction)
        rest = rest - torch.outer(direction, direction @ rest)
        found.append(best)
    true = set(batch.tolist())
    raw = mean_power(test, x.square().sum(1) * errors.square().sum(1), std)
    hits = len(true & set(found))
    return [mean_power(test, strengths(x, errors), std), told / 12, raw, hits / 12, float(len(found) - hits)]


def toy() -> None:
    print("\n## A language model's value gradient under noise (F6)\n")
    print(
        "Two layers, V = 2000, d = 128, 16 tokens, 4 seeds; noise in units of the norm of the whole gradient; only dW_V of layer 1 is read.\n"
    )
    print("| z | span check | exchange search | told all other tokens | forecast |\n|---|---|---|---|---|")
    lines: dict[str, list[tuple[float, float]]] = {
        "forecast": [],
        "told the others": [],
        "exchange": [],
        "span check": [],
    }
    for noise in (1e-6, 1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 1e-2):
        found = recalls(noise, range(4))
        print(f"| {noise:g} | {found.span:.3f} | {found.exchange:.3f} | {found.told:.3f} | {found.forecast:.3f} |")
        if noise > 1e-5:
            for name, value in zip(lines, (found.forecast, found.told, found.exchange, found.span), strict=True):
                lines[name].append((noise, value))
    write_lines(
        PLOTS / "exchange.svg",
        "A value gradient under noise",
        lines,
        x="noise multiplier",
        y="tokens at the right position",
        log=(True, False),
        dashed=["forecast"],
        dots=["told the others"],
    )


def ranks() -> None:
    print("\n## Rank law: inputs of the first layer for batches of random words\n")
    print(
        "| records × tokens | words | pairs | T + P − c | with a bias | pairs that pass the first test |\n|---|---|---|---|---|---|"
    )
    law = InputLaw(positional=True, rotary=False, normalization="layer", bias=False, width=768)
    lines: dict[str, list[tuple[float, float]]] = {"tokens in the batch": [], "rank T + P − c": []}
    for records in (1, 2, 4, 8, 16, 32):
        for words in (50, 2000):
            ids = torch.randint(words, (records, 16), generator=derive(records, "ids", words))
            graph = token_position_graph(ids, torch.ones_like(ids, dtype=torch.bool), positional=law.positional)
            print(
                f"| {records} × 16 | {words} | {graph.pairs} | {graph.rank(bias=False)} | {graph.rank(bias=True)} | {graph.indistinguishable(bias=False)} |"
            )
            if words == 50:
                lines["tokens in the batch"].append((records, records * 16.0))
                lines["rank T + P − c"].append((records, float(graph.rank(bias=False))))
    write_lines(
        PLOTS / "rank-law.svg",
        "Rank of the first inputs",
        lines,
        x="records of 16 tokens out of 50 words",
        y="dimensions",
        log=(True, True),
    )


def tables() -> None:
    print("\n## Span table of real models (predicted rank / rank that a float64 gradient shows / tokens held of 10)\n")
    print("| model, loss, layers | query | key | value | all |\n|---|---|---|---|---|")
    sizes = {"hidden_size": 128, "num_attention_heads": 4}
    for model, loss, layers in (
        ("bert", "classification", 1), ("bert", "classification", 2), ("bert", "masked-lm", 2), ("llama", "causal-lm", 1),
        ("llama", "classification", 1), ("llama", "classification", 2), ("opt", "causal-lm", 2), ("roberta", "classification", 2),
    ):  # fmt: skip
        subject = load_subject(f"random:{model}", loss=loss, settings=sizes | {"num_hidden_layers": layers})
        batch = stand_in_batch(subject, batch_size=1, seq_len=10, seed=0)
        found = predict(subject, batch, training=LocalTraining(), noise=Noise(), origin="")
        cells = " | ".join(f"{r.rank} / {'–' if r.seen is None else r.seen} / {r.held}" for r in found.table)
        print(f"| {model}, {loss}, {layers} | {cells} |")


PARTS = {part.__name__: part for part in (spikes, roundings, null, token_power, toy, ranks, tables)}


def print_page(parts: Sequence[str]) -> None:
    print("# Span attacks: theory beside simulation\n\nPrinted by `python -m benchmarks.span.theory`.\n")
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
