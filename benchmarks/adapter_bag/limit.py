"""What can be known of a token in the LoRA gradients of an encoder's first attention at step 0, if all others are told.

    python -m benchmarks.adapter_bag.limit [--models minilm bert] [--ranks 16] [--seeds 20 21 22 23 24] [--others 1000] [--tokens 32]

No attack: the truth is told. dL/dB of queries holds, head by head, Σ_s k_s c_sᵀ with c_s = Σ_t dS_ts A x_t, and that of
keys Σ_t q_t c_tᵀ. A token of the batch is taken out and set against ``--others`` random tokens of the vocabulary at its
position; "first" is how often it has the largest likelihood. What is told of all other tokens grows from column to column:

    place      token and position; their strengths |c|² are taken for equal
    strength   also |c|² of each, head by head
    record     also which tokens stand in one record, and the directions C of each record's c, so that the sums have
               covariance Σ_i C_i ⊗ Σ_{t in i} |c_t|² f_t f_tᵀ. The record of the token itself is not told: the best of all counts.

The unknown strength of the token itself is integrated over a fixed grid. "Even" is (Σ e)² / (n Σ e²) of the strengths e, the
share of tokens that matter in a head; "along" the share of a record's c in the first two of its directions, per head.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.adapter_bag.recall import Setting, student
from benchmarks.common import run
from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing.first_input import read_first_input
from gradleak.models import LoRA, Subject

RECORDS, LENGTH = 8, 16
LEVELS = 2.0 ** torch.arange(-8, 6, dtype=torch.float64)
RIDGE, COMMON = 1e-4, 100.0
DIRECTIONS = 3
"""Of a record's coefficients that the record test reads: they hold .91 of the energy in MiniLM."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One map's gradient as a sum of features of single tokens.

    Attributes:
        truth: features of the batch, ``[heads tokens rows]``; others: of random tokens, ``[heads others positions rows]``.
        sums: ``[heads rows rank]``; coefficients: ``[heads tokens rank]``; common: the vocabulary's mean, ``[heads rows]``.
        centered: the coefficients of a record sum to zero.
    """

    truth: Tensor
    others: Tensor
    sums: Tensor
    coefficients: Tensor
    common: Tensor
    centered: bool


def inner(subject: Subject, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of the first attention ``[batch seq d]`` and dL/d(scores) ``[batch heads seq seq]``, from the plain formula."""
    block = subject.anatomy.blocks[0]
    kept: dict[str, Tensor] = {}

    def keep(name: str, made: Tensor) -> None:
        kept[name] = made.detach()

    def see_input(_m: object, args: tuple[Tensor, ...]) -> None:
        kept["x"] = args[0].detach()

    def see_output(_m: object, args: tuple[Tensor, ...]) -> None:
        args[0].retain_grad()
        kept["attended"] = args[0]

    names = ("query", "key", "value")
    modules = [subject.module.get_submodule(each.module) for each in block.attention_inputs]
    handles = [
        m.register_forward_hook(lambda _m, _a, out, name=name: keep(name, out))
        for m, name in zip(modules, names, strict=True)
    ]
    handles.append(modules[0].register_forward_pre_hook(see_input))
    handles.append(subject.module.get_submodule(block.attention_output.module).register_forward_pre_hook(see_output))
    logits = subject.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.nn.functional.cross_entropy(logits, labels).backward()
    for handle in handles:
        handle.remove()

    def heads(made: Tensor) -> Tensor:
        return made.detach().double().unflatten(-1, (block.heads, -1)).transpose(1, 2)

    query, key, value = (heads(kept[name]) for name in names)
    scale = query.shape[-1] ** -0.5
    attention = (query @ key.transpose(-1, -2) * scale).softmax(-1)
    error = kept["attended"].grad
    if error is None:
        raise RuntimeError("No error signal reached the first attention.")
    through = heads(error) @ value.transpose(-1, -2)
    return kept["x"].double(), attention * (through - (attention * through).sum(-1, keepdim=True)) * scale


def views(setting: Setting, seed: int, others: int) -> list[View]:
    """Queries' and keys' gradients of one batch with the truth about them."""
    subject = setting.subject(seed)
    ids = torch.randint(subject.anatomy.vocab_size, (RECORDS, LENGTH), generator=derive(seed, "ids"))
    labels = torch.arange(RECORDS) % subject.classes
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed))
    block = subject.anatomy.blocks[0]
    x, scores = inner(subject, ids, labels)
    law = read_first_input(subject, block.attention_inputs[0].module, positions=LENGTH)
    if law is None:
        raise RuntimeError("The first attention's input follows no law.")
    strangers = torch.randperm(subject.anatomy.vocab_size, generator=derive(seed, "others"))[: others + ids.numel()]
    strangers = strangers[~torch.isin(strangers, ids)][:others]
    adapters = {a.target: a for a in subject.anatomy.adapters_of(block.attention_inputs)}
    made: list[View] = []
    for mine, other, dscores in ((0, 1, scores), (1, 0, scores.transpose(-1, -2))):
        adapter, there = adapters[block.attention_inputs[mine].module], block.attention_inputs[other]
        down = adapter.down.as_matrix(subject.parameters()[adapter.down.weight].detach()).double()
        weight = there.as_matrix(subject.parameters()[there.weight].detach()).double().unflatten(0, (block.heads, -1))
        bias = subject.parameters()[there.bias or ""].detach().double().unflatten(0, (block.heads, -1))

        def features(z: Tensor, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
            return torch.einsum("hrd,nd->hnr", weight, z.double()) + bias.unsqueeze(1)

        truth, away = features(x.flatten(0, 1)), features(law.rows(strangers).flatten(0, 1))
        common = away.mean(1)
        if mine == 0:
            truth, away = truth - common.unsqueeze(1), away - common.unsqueeze(1)
        # Read along keys for the queries' gradient: c_s = Σ_t dS_ts A x_t.
        c = torch.einsum("bhts,btr->hbsr", dscores, x @ down.T).flatten(1, 2)
        sums = adapter.up.as_matrix(update[adapter.up.weight]).double().unflatten(0, (block.heads, -1))
        explained = torch.einsum("hnr,hnc->hrc", truth, c)
        c = c * ((sums * explained).sum() / explained.square().sum())
        made.append(
            View(
                truth=truth,
                others=away.unflatten(1, (len(strangers), LENGTH)),
                sums=sums,
                coefficients=c,
                common=common,
                centered=mine == 0,
            )
        )
    return made


def ridge(view: View, head: int, covariance: Tensor, columns: int) -> Tensor:
    """What keeps a covariance regular; large along the vocabulary's mean where that part of a sum says nothing."""
    size = float(covariance.diagonal().mean())
    made = RIDGE * size * torch.eye(len(covariance), dtype=torch.float64)
    if not view.centered:
        unit = torch.nn.functional.normalize(view.common[head], dim=0)
        made = made + COMMON * size * torch.kron(torch.eye(columns, dtype=torch.float64), torch.outer(unit, unit))
    return made


def mixture(energy: Tensor, size: Tensor, strength: float, columns: float) -> Tensor:
    """Log-likelihood ratio over the grid of strengths; energies and sizes ``[tokens directions]``."""
    kappa = size.clamp(min=1e-12).unsqueeze(-1) * (LEVELS * strength)
    ratio = (energy.unsqueeze(-1) * kappa / (1 + kappa) - columns * kappa.log1p()).sum(1) / 2
    return ratio.logsumexp(-1)


def plain(view: View, chosen: list[int], *, told: bool) -> Tensor:
    """Ratios of the truth (first) and the others, ``[chosen 1+others]``; strengths of all others told or equal."""
    rank = view.sums.shape[2]
    total = torch.zeros(len(chosen), 1 + view.others.shape[1], dtype=torch.float64)
    for h in range(len(view.sums)):
        # Columns in units of what the coefficients have there.
        root = torch.linalg.cholesky(view.coefficients[h].T @ view.coefficients[h] / view.truth.shape[1])
        white = torch.linalg.solve_triangular(root, view.coefficients[h].T, upper=False).T
        sums = torch.linalg.solve_triangular(root, view.sums[h].T, upper=False).T
        strength = white.square().mean(1) if told else torch.ones(len(white), dtype=torch.float64)
        f = view.truth[h]
        covariance = f.T @ (f * strength.unsqueeze(1))
        covariance = covariance + ridge(view, h, covariance, 1)
        for k, i in enumerate(chosen):
            tried = torch.cat((f[i : i + 1], view.others[h, :, i % LENGTH]))
            seen = torch.linalg.solve(covariance - strength[i] * torch.outer(f[i], f[i]), tried.T).T
            size = (seen * tried).sum(1)
            energy = (seen @ sums).square().sum(1) / size
            total[k] += mixture(energy.unsqueeze(1), size.unsqueeze(1), 1.0, rank)
    return total


def by_record(view: View, chosen: list[int]) -> Tensor:
    """The same for every record that the token may stand in, ``[chosen 1+others records]``."""
    rank, rows = view.sums.shape[2], view.sums.shape[1]
    total = torch.zeros(len(chosen), 1 + view.others.shape[1], RECORDS, dtype=torch.float64)
    for h in range(len(view.sums)):
        c = view.coefficients[h].unflatten(0, (RECORDS, LENGTH))
        f = view.truth[h].unflatten(0, (RECORDS, LENGTH))
        energy = c.square().sum(-1)
        _, values, frame = torch.linalg.svd(c, full_matrices=False)
        frame = frame.transpose(1, 2) * (values / values.square().sum(1, keepdim=True).sqrt()).unsqueeze(1)
        summed = torch.einsum("btr,bt,btq->brq", f, energy, f)
        covariance = torch.einsum("bmk,bnk,brq->mrnq", frame, frame, summed).reshape(rank * rows, -1)
        inverse = torch.linalg.inv(covariance + ridge(view, h, covariance, rank))
        for k, i in enumerate(chosen):
            record, place = divmod(i, LENGTH)
            own = torch.kron(frame[record], f[record, place].unsqueeze(1)) * energy[record, place].sqrt()
            part = inverse @ own
            inner_part = torch.eye(own.shape[1], dtype=torch.float64) - own.T @ part
            without = inverse + part @ torch.linalg.solve(inner_part, part.T)
            seen = (without @ view.sums[h].T.reshape(-1)).view(rank, rows)
            tried = torch.cat((f[record, place].unsqueeze(0), view.others[h, :, place]))
            full = without.view(rank, rows, rank, rows)
            for b in range(RECORDS):
                axes = frame[b, :, :DIRECTIONS]
                folded = torch.einsum("ma,mrnq,nb->arbq", axes, full, axes)
                sizes, turn = torch.linalg.eigh(torch.einsum("zr,arbq,zq->zab", tried, folded, tried))
                along = torch.einsum("ma,mr,zr,zab->zb", axes, seen, tried, turn).square()
                total[k, :, b] += mixture(along / sizes.clamp(min=1e-12), sizes, float(energy.mean()), 1.0)
    return total


def evenness(found: list[View]) -> tuple[float, float]:
    even, along = [], []
    for view in found:
        energy = view.coefficients.square().sum(-1)
        even.append((energy.sum(1).square() / (energy.square().sum(1) * energy.shape[1])).mean())
        squares = torch.linalg.svdvals(view.coefficients.unflatten(1, (RECORDS, LENGTH))).square()
        along.append((squares[..., :2].sum(-1) / squares.sum(-1)).mean())
    return float(torch.stack(even).mean()), float(torch.stack(along).mean())


def first(ratios: Tensor) -> float:
    return float((ratios[:, 0] > ratios[:, 1:].amax(1)).double().mean())


def measured(setting: Setting, seed: int, others: int, tokens: int) -> list[float]:
    """Share of first places for what is told, share of right records, evenness, share along, CPU seconds."""
    start = time.process_time()
    found = views(setting, seed, others)
    chosen = torch.randperm(RECORDS * LENGTH, generator=derive(seed, "chosen"))[:tokens].tolist()
    equal = first(torch.stack([plain(view, chosen, told=False) for view in found]).sum(0))
    told = first(torch.stack([plain(view, chosen, told=True) for view in found]).sum(0))
    records = torch.stack([by_record(view, chosen) for view in found]).sum(0)
    right = records[:, 0].argmax(1) == torch.tensor(chosen) // LENGTH
    seconds = time.process_time() - start
    return [equal, told, first(records.amax(-1)), float(right.double().mean()), *evenness(found), seconds]


def print_page(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print(
        "| model | rank | seeds | first: place | first: strength | first: record | right record | even | along | CPU s |"
    )
    print("|---" * 10 + "|")
    for model in asked.models:
        for rank in asked.ranks:
            setting = Setting(model=model, lora=LoRA(rank=rank), blocks=12, records=RECORDS, length=LENGTH)
            rows = [measured(setting, seed, asked.others, asked.tokens) for seed in asked.seeds]
            values = torch.tensor(rows, dtype=torch.float64)
            half = values.std(0) * float(student.ppf(0.975, max(1, len(rows) - 1))) / len(rows) ** 0.5
            cells = [f"{float(m):.2f} ± {float(h):.2f}" for m, h in zip(values.mean(0)[:6], half[:6], strict=True)]
            print(
                f"| {model} | {rank} | {len(rows)} | " + " | ".join(cells) + f" | {float(values[:, 6].mean()):.0f} |",
                flush=True,
            )


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    reader.add_argument("--models", nargs="*", choices=["minilm", "bert"], default=["minilm", "bert"])
    reader.add_argument("--ranks", nargs="*", type=int, default=[16])
    reader.add_argument("--seeds", nargs="*", type=int, default=[20, 21, 22, 23, 24])
    reader.add_argument("--others", type=int, default=1000)
    reader.add_argument("--tokens", type=int, default=32)
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=asked.seeds):
        print_page(asked)


if __name__ == "__main__":
    main()
