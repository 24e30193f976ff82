"""Noise on every tensor: the recall that the token test is predicted to have, what it has, and what the search of `span` finds.

    python -m benchmarks.span.noise      # also draws docs/theory/span-noise.svg

A pair is a token at a position. **Told** is the share of true pairs that pass the test of `token_test`, told all other pairs, on the noisy gradient with
the noise that `span` measures itself; before it stands the predicted power: noncentrality |x_perp|² |δ|² / σ² from the clean factors, as many columns as the
first attention's projections have, `FALSE_ALARM_RATE` false alarms among all candidates. **Found** is the share of true pairs that `span` finds to hold energy of their
own (`noisy_candidates`), told nothing: from the update with both tables (candidates: tokens that the rows show, at every position), or without (candidates: the
vocabulary at every position). No search is told the others: it drops what is weak, which no longer hides what is left, and it must prefer each pair to
its alternatives. **Predicted** is therefore the expected share of true pairs that are left when the weakest is dropped until all hold enough (`eliminate`, on the clean
gradient with other noise, three draws), each times the probability that it beats every alternative (`theory/noise/position_power.py`: another position, or two tokens
that trade theirs). **Likelier** counts batches in which what was found explains more than what is true and holds energy of its own: there no search could do
better with this likelihood. **False** are pairs so found that are not in the batch, per batch. **Rows** is the comparison for tokens from the rows of the token table
alone: predicted is the power of χ² with as many columns as the model is wide, found what `token_support` takes.

Tokens are uniform over the vocabulary and lengths uniform between half and the full length, as in `benchmarks/span/speed.py`. Noise is relative to the root mean
square of each tensor and unknown to the attack. Intervals are Student's over batches (95 %), of the difference to the prediction of the same batch.
The seeds (40 ...) were used for nothing else.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from scipy.stats import t as student
from torch import Tensor

from benchmarks.common import run
from benchmarks.common.chart import Axis, Series, write_chart
from benchmarks.span.speed import Cell, make_batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.embeddings.support import token_support
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.mechanics.subspace.noise_level import noise_in
from gradleak.models import Subject, load_subject
from gradleak.span.likelihood.energy_test import own_energy
from gradleak.span.noise.pair_search import noisy_candidates
from gradleak.span.noise.sparse_selection import eliminate
from gradleak.span.reading.observed_layer import FALSE_ALARM_RATE, first_layer
from gradleak.theory.identifiability.gradient_flow import flow_through
from gradleak.theory.noise.position_power import TruePairs
from gradleak.theory.noise.token_power import TokenTest, mean_power, strengths

PLOT = Path(__file__).parents[2] / "docs" / "theory" / "span-noise.svg"
SMALL = {"n_embd": 192, "n_layer": 2, "n_head": 6, "vocab_size": 4000}
FIRST_SEED, ROWS_RATE, DRAWS = 40, 0.05, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    name: str
    subject: Subject
    batch: int
    length: int
    levels: tuple[float, ...]
    seeds: int
    frozen_seeds: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One batch: its true pairs with the two factors of the first attention's gradient, and the tensors that are read."""

    pairs: Tensor
    inputs: Tensor
    errors: Tensor
    rows: Tensor
    clean: Mapping[str, Tensor]
    anywhere: Tensor

    @staticmethod
    def of(shape: Shape, seed: int) -> Case:
        subject = shape.subject
        batch = make_batch(Cell(group="", batch=shape.batch, length=shape.length), subject, seed, [])
        first, tables = names(subject)
        flow = flow_through(subject, batch, (first[1],))[first[1]]
        places = torch.arange(shape.length).expand_as(batch.inputs)
        pairs, which = torch.stack((batch.inputs, places), -1)[batch.mask].unique(dim=0, return_inverse=True)
        inputs = torch.zeros(len(pairs), flow.inputs.shape[-1], dtype=torch.float64)
        errors = torch.zeros(len(pairs), flow.errors.shape[-1], dtype=torch.float64)
        inputs[which] = flow.inputs[batch.mask].double()
        errors.index_add_(0, which, flow.errors[batch.mask].double())
        update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed, "clean"))
        rows = update[tables[0]][pairs[:, 0].unique()].double()
        clean = {name: update[name] for name in (first[0], *tables)}
        row = pairs[:, :1].expand(-1, shape.length)
        seen = linear_inputs(subject, (first[1],), row)[first[1]].transpose(0, 1)
        anywhere = torch.nn.functional.normalize(seen.double(), dim=2)
        return Case(pairs=pairs, inputs=inputs, errors=errors, rows=rows, clean=clean, anywhere=anywhere)


def names(subject: Subject) -> tuple[tuple[str, str], tuple[str, str]]:
    """Weight and module of the first attention's projections, and both tables."""
    (projections,) = subject.anatomy.blocks[0].attention_inputs
    token, position = subject.anatomy.token_embedding, subject.anatomy.position_embedding
    assert token is not None
    assert position is not None
    return (projections.weight, projections.module), (token, position)


def measure(shape: Shape, case: Case, level: float, seed: int) -> dict[str, float]:
    (weight, _), tables = names(shape.subject)
    size = {name: level * float(tensor.double().square().mean().sqrt()) for name, tensor in case.clean.items()}
    update = {
        name: tensor + size[name] * torch.randn(tensor.shape, generator=derive(seed, "noise", name, level))
        for name, tensor in case.clean.items()
    }
    vocab, columns = shape.subject.anatomy.vocab_size, case.errors.shape[1]
    strength, measured = strengths(case.inputs, case.errors), noise_in(update[weight])
    unit = torch.nn.functional.normalize(case.inputs, dim=1)
    energy = own_energy(unit, update[weight].double() / measured)
    result: dict[str, float] = {"pairs": len(case.pairs)}
    bag = token_support(update[tables[0]])
    truth = {int(token) for token in case.pairs[:, 0]}
    by_rows = TokenTest(columns=case.rows.shape[1], candidates=vocab, false_alarms=ROWS_RATE)
    result["rows predicted"] = mean_power(by_rows, case.rows.square().sum(1), size[tables[0]])
    result["rows found"] = len(truth & set(bag.ids.tolist())) / len(truth)
    result["rows false"] = len(set(bag.ids.tolist()) - truth)
    for kind, count in (("tables", len(truth)), ("frozen", vocab)):
        test = TokenTest(columns=columns, candidates=count * shape.length, false_alarms=FALSE_ALARM_RATE)
        result[f"{kind} power"] = mean_power(test, strength, size[weight])
        result[f"{kind} told"] = float((energy >= test.threshold).double().mean())
        if kind == "tables" or seed < FIRST_SEED + shape.frozen_seeds:
            seen = update if kind == "tables" else {weight: update[weight]}
            result[f"{kind} predicted"] = predicted(shape, case, size, seed, test, with_tables=kind == "tables")
            result |= {f"{kind} {what}": value for what, value in found(shape, seen, case, seed, test).items()}
    return result


def predicted(
    shape: Shape, case: Case, size: Mapping[str, float], seed: int, test: TokenTest, *, with_tables: bool
) -> float:
    """Expected share of true pairs that hold energy of their own beside each other, and beat their alternatives."""
    (weight, _), tables = names(shape.subject)
    unit = torch.nn.functional.normalize(case.inputs, dim=1)
    signal = case.inputs.T @ case.errors / size[weight]
    tokens, place = case.pairs.unbind(1)
    each = math.hypot(size[tables[1]], size[tables[0]] * math.sqrt(len(tokens.unique()) / shape.length))
    rows = case.clean[tables[0]][tokens].double() / each if with_tables else signal.new_zeros(len(tokens), 0)
    places = TruePairs(inputs=case.anywhere, place=place, token=tokens, signal=signal, rows=rows)
    shares = []
    for draw in range(DRAWS):
        noise = torch.randn(signal.shape, generator=derive(seed, "predicted", draw), dtype=torch.float64)
        members = eliminate(unit, signal + noise, false_alarms=test.false_alarms / test.candidates)
        shares.append(float(places.preference(members).sum()) / len(tokens) if len(members) else 0.0)
    return mean(shares)


def found(shape: Shape, update: Mapping[str, Tensor], case: Case, seed: int, test: TokenTest) -> dict[str, float]:
    """Share of true pairs that hold energy of their own, false ones, and whether these explain more than the true ones."""
    model = Model(subject=shape.subject)
    tokens = shape.batch * shape.length
    (weight, path), _ = names(shape.subject)
    reader = first_layer(update, model, noise_std=lambda _: 0.0, summands=tokens)
    candidates = noisy_candidates(
        update, model, reader, noise_std=lambda name: noise_in(update[name]), positions=shape.length, rng=derive(seed)
    )
    assert candidates is not None
    settled = {
        (int(token), place)
        for place, (ids, residuals) in enumerate(zip(candidates.tokens, candidates.residuals, strict=True))
        for token in ids[residuals == 0]
    }
    truth = {(token, place) for token, place in case.pairs.tolist()}
    gradient = update[weight].double() / noise_in(update[weight])
    unit = torch.nn.functional.normalize(case.inputs, dim=1)
    true = unit[eliminate(unit, gradient, false_alarms=test.false_alarms / test.candidates)]
    likelier = explained(inputs_of(settled, shape, path), gradient, test) > explained(true, gradient, test) + 1.0
    return {
        "found": len(settled & truth) / len(truth),
        "false": len(settled - truth),
        "likelier": float(likelier),
    }


def inputs_of(pairs: set[tuple[int, int]], shape: Shape, path: str) -> Tensor:
    ids, place = torch.tensor(sorted(pairs), dtype=torch.int64).reshape(-1, 2).unbind(1)
    if not len(ids):
        return torch.zeros(0, shape.subject.anatomy.hidden_size, dtype=torch.float64)
    seen = linear_inputs(shape.subject, (path,), ids.unsqueeze(1).expand(-1, shape.length))[path]
    return seen[torch.arange(len(ids)), place].double()


def explained(inputs: Tensor, gradient: Tensor, test: TokenTest) -> float:
    """Energy of the gradient in the span, less what each of so many candidates must hold."""
    return float((torch.linalg.qr(inputs.T).Q.T @ gradient).square().sum()) - len(inputs) * test.threshold


def with_interval(differences: list[float]) -> str:
    middle = mean(differences)
    if len(differences) < 2:
        return f"{middle:+.3f}"
    half = float(student.ppf(0.975, len(differences) - 1)) * stdev(differences) / math.sqrt(len(differences))
    return f"{middle:+.3f} ± {half:.3f}"


def report(shape: Shape) -> dict[str, list[tuple[float, float]]]:
    print(f"\n## {shape.name}, {shape.batch} × {shape.length}\n")
    print(
        "| noise | batches | pairs | update | power | told | told − power | predicted | found | found − predicted | false per batch | likelier |\n"
        + "|---" * 12
        + "|"
    )
    cases = {seed: Case.of(shape, seed) for seed in range(FIRST_SEED, FIRST_SEED + shape.seeds)}
    lines: dict[str, list[tuple[float, float]]] = {}
    rows = []
    for level in shape.levels:
        results = [measure(shape, case, level, seed) for seed, case in cases.items()]
        for kind in ("tables", "frozen"):
            mine = [r for r in results if f"{kind} found" in r]
            told, seen = (
                [r[f"{kind} {what}"] - r[f"{kind} {theory}"] for r in mine]
                for what, theory in (("told", "power"), ("found", "predicted"))
            )
            columns = ("power", "told", "predicted", "found", "false", "likelier")
            middle = {what: mean(r[f"{kind} {what}"] for r in mine) for what in columns}
            print(
                f"| {level:g} | {len(mine)} | {sum(r['pairs'] for r in mine):.0f} | {kind} | {middle['power']:.3f} | {middle['told']:.3f} "
                f"| {with_interval(told)} | {middle['predicted']:.3f} | {middle['found']:.3f} | {with_interval(seen)} | {middle['false']:.1f} "
                f"| {middle['likelier'] * len(mine):.0f} |",
                flush=True,
            )
            for what in ("predicted", "power", "found"):
                lines.setdefault(f"{kind}: {what}", []).append((level, middle[what]))
        gap = with_interval([r["rows found"] - r["rows predicted"] for r in results])
        predicted, seen_rows, false = (
            mean(r[f"rows {what}"] for r in results) for what in ("predicted", "found", "false")
        )
        rows.append(f"| {level:g} | {predicted:.3f} | {seen_rows:.3f} | {gap} | {false:.2f} |")
    print(
        "\nRows of the token table alone:\n\n| noise | predicted | found | found − predicted | false per batch |\n|---|---|---|---|---|"
    )
    print("\n".join(rows), flush=True)
    return lines


def print_page(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print(
        "# Recall under noise: told the others, predicted, found\n\nPrinted by `python -m benchmarks.span.noise`, whose first lines say what the columns are."
    )
    small = load_subject("random:gpt2", loss="classification", settings=SMALL)
    report(
        Shape(
            name="GPT-2 of width 192, 4,000 words",
            subject=small,
            batch=4,
            length=12,
            levels=(0.01, 0.1, 0.3, 1.0, 2.0, 3.0, 10.0),
            seeds=10,
            frozen_seeds=10,
        )
    )
    if arguments.small_only:
        return
    large = load_subject("random:gpt2", loss="classification")
    lines = report(
        Shape(
            name="GPT-2 small",
            subject=large,
            batch=16,
            length=16,
            levels=(0.01, 0.1, 0.3, 1.0, 2.0, 3.0),
            seeds=4,
            frozen_seeds=3,
        )
    )
    write_chart(
        PLOT,
        title="Pairs of token and position under noise, GPT-2 small, 16 × 16",
        x=Axis(label="noise / root mean square of the tensor", log=True),
        y=Axis(label="share of true pairs", low=0.0, high=1.0),
        series=[
            Series(label=name, points=points, dots=name.endswith("power"), dashed=name.endswith("predicted"))
            for name, points in lines.items()
        ],
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--small-only", action="store_true")
    arguments = run.parse(parser, argv)
    with run.record(__file__, arguments, seeds=range(FIRST_SEED, FIRST_SEED + 10)):
        print_page(arguments)


if __name__ == "__main__":
    main()
