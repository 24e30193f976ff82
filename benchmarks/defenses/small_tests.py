"""The small tests of the notes that are no attack on pictures: rows of token tables, rank, ratios, an analytic first layer.

    python -m benchmarks.defenses.small_tests [--seeds 5]

Every number is a mean over seeds with Student's 95 % interval; a seed is a model, a record and all draws. The other tests of
the notes are rows of ``docs/defense_table.md`` and tables of ``benchmarks/results/defenses/image_defenses.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.common import run
from benchmarks.defenses.records import text
from benchmarks.defenses.worlds import CLASSES, SIDE, Net, digits, subject_of
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel, Memory
from gradleak.core.rng import derive
from gradleak.harness.request import catalogue
from gradleak.harness.utility.training import interval
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject

VOCAB, WIDTH, TOKENS = 300, 64, 12
SETTINGS = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}


def text_world(seed: int) -> tuple[ClientTrainer, Batch]:
    """Twelve different tokens of 300 (the notes: of 200; our smallest tokenizer has 260), a small decoder, fresh weights."""
    subject = load_subject("random:llama", loss="classification", settings=SETTINGS, seed=seed)
    ids = torch.randperm(VOCAB, generator=derive(seed, "tokens"))[:TOKENS].unsqueeze(0)
    batch = Batch(inputs=ids, mask=torch.ones_like(ids).bool(), labels=torch.tensor([seed % subject.classes]))
    return ClientTrainer(subject=subject, training=LocalTraining()), batch


def released(trainer: ClientTrainer, batch: Batch, chain: str, seed: int) -> Mapping[str, Tensor]:
    return Channel(trainer=trainer, stages=catalogue.make_stages(chain)).observe(batch, derive(seed, "channel"))


def rows_found(chain: str, seed: int) -> dict[str, float]:
    """Recall and precision of the token set, read off rows that are not zero; under noise off as many of the longest rows."""
    trainer, batch = text_world(seed)
    table = trainer.subject.anatomy.token_embedding
    assert table is not None
    lengths, true = released(trainer, batch, chain, seed)[table].norm(dim=1), set(batch.inputs[0].tolist())
    noisy = bool((lengths > 0).all())
    found = lengths.topk(len(true)).indices if noisy else lengths.nonzero().flatten()
    hits = len(true & set(found.tolist()))
    return {"recall": hits / len(true), "precision": hits / max(len(found), 1)}


def rows_under_noise(std: float, seed: int) -> dict[str, float]:
    """Noise as large beside the rows as the notes' was beside theirs, whose median length was .03."""
    trainer, batch = text_world(seed)
    table = trainer.subject.anatomy.token_embedding
    assert table is not None
    lengths = trainer.update(batch, derive(seed, "plain"))[table].norm(dim=1)
    scale = float(lengths[lengths > 0].median()) / 0.03
    return rows_found(f"gaussian(std={std * scale})", seed)


def query_rank(chain: str, seed: int) -> dict[str, float]:
    """Rank of the first query map's released gradient."""
    trainer, batch = text_world(seed)
    name = trainer.subject.anatomy.blocks[0].attention_inputs[0].weight
    sizes = torch.linalg.svdvals(released(trainer, batch, chain, seed)[name].double())
    return {"rank": float((sizes > 1e-5 * sizes[0]).sum())}


def second_round(seed: int) -> dict[str, float]:
    """What AdaDefense's second release tells of g₁ / |g₀|, the sign of g₀ read off its first.

    With g₀ = σ|g₀| and r = g₁ / |g₀| the release is c (.09σ + .1r) / √(.000999 + .001r²), a quadratic in r.
    """
    trainer, batch = text_world(seed)
    _, other = text_world(seed + 1000)
    channel = Channel(trainer=trainer, stages=catalogue.make_stages("ada_defense()"))
    first, memory = channel.client(batch, Memory(), derive(seed, "first"))
    second, _ = channel.client(other, memory, derive(seed, "second"))
    g0, g1 = (trainer.update(each, derive(seed, "plain")) for each in (batch, other))
    # Where the first gradient is not lost beside Adam's ε.
    kept = {name: g0[name].abs() > 1e-3 for name in g0}
    sign, seen = (
        torch.cat([each[n].double()[kept[n]] for n in g0]) for each in ({n: first[n].sign() for n in g0}, second)
    )
    ratio = torch.cat([(g1[n].double() / g0[n].double().abs())[kept[n]] for n in g0])
    y = seen / (1e-3 * (1 - 0.999**2) ** 0.5 / (1 - 0.9**2))
    a, b, c = 0.01 - 0.001 * y**2, 0.018 * sign, 0.0081 - 0.000999 * y**2
    root = (b**2 - 4 * a * c).clamp_min(0).sqrt()
    roots = torch.stack([(-b + root) / (2 * a), (-b - root) / (2 * a)])
    fits = torch.sign(0.09 * sign + 0.1 * roots) == torch.sign(y)
    errors = torch.where(fits, (roots - ratio).abs() / ratio.abs().clamp_min(1e-12), torch.inf).amin(0)
    return {
        "median error of r, %": 100 * float(errors.median()),
        "two solutions, %": 100 * float(fits.all(0).double().mean()),
    }


def analytic(seed: int) -> dict[str, float]:
    """Behind PRECODE the first layer of a perceptron with biases still is x = ∂L/∂W_i / ∂L/∂b_i."""
    rng = derive(seed, "perceptron")
    net = Net(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 64), nn.ReLU()), nn.Linear(64, CLASSES))
    for parameter in net.parameters():
        parameter.data = (2 * torch.rand(parameter.shape, generator=rng) - 1) / parameter.shape[-1] ** 0.5
    pictures, classes = digits()
    batch = Batch(inputs=pictures[[seed]], mask=torch.ones(1, dtype=torch.bool), labels=classes[[seed]])
    trainer = ClientTrainer(subject=subject_of(net.eval(), "perceptron"), training=LocalTraining())
    update = released(trainer, batch, "precode()", seed)
    row = int(update["features.1.bias"].abs().argmax())
    x = update["features.1.weight"][row] / update["features.1.bias"][row]
    return {"largest error of a pixel, 1e-6": 1e6 * float((x - pictures[seed].flatten()).abs().max())}


TESTS: tuple[tuple[str, str, Callable[[int], dict[str, float]]], ...] = (
    ("token rows, no defense", "exact", lambda seed: rows_found("none", seed)),
    ("token rows, prune 99 %", "recall 1.0, precision 1.0", lambda seed: rows_found("prune(fraction=0.99)", seed)),
    ("token rows, noise 1e-3 at median row .03", "recall 1.0", lambda seed: rows_under_noise(0.001, seed)),
    ("token rows, noise 1e-2 at median row .03", "recall .08", lambda seed: rows_under_noise(0.01, seed)),
    ("token rows, AdaDefense", "exact", lambda seed: rows_found("ada_defense()", seed)),
    ("rank of the query gradient, no defense", "11", lambda seed: query_rank("none", seed)),
    ("the same, AdaDefense", "64", lambda seed: query_rank("ada_defense()", seed)),
    ("AdaDefense, its second release", "about 0.2 %, two solutions in 47 %", second_round),
    ("PRECODE, first layer of a perceptron", "6e-8 (float64)", analytic),
)


def print_page(asked: argparse.Namespace) -> None:
    seeds = asked.seeds
    torch.set_num_threads(1)
    print(f"Output of `python -m benchmarks.defenses.small_tests --seeds {seeds}`.\n")
    print("| test | notes | here |\n|---|---|---|")
    for what, noted, test in TESTS:
        found = [test(seed) for seed in range(seeds)]
        shown = ", ".join(f"{name} {text(interval([each[name] for each in found]), 2)}" for name in found[0])
        print(f"| {what} | {noted} | {shown} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    asked = run.parse(parser, argv)
    with run.record(__file__, asked, seeds=range(asked.seeds)):
        print_page(asked)


if __name__ == "__main__":
    main()
