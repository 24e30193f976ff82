"""What noise does to a reconstruction, predicted and measured; draws the charts of docs/theory.

    python -m benchmarks.theory.noise_theory

Error law and influence on bare attention (float64), influence on a small GPT-2, the bracket of stochastic Lanczos
quadrature, and the noise meter on seven architectures and, if the demo extra is installed, on MiniLM. About half a CPU
minute.
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
from gradleak.core.batch import Batch, soft_labels
from gradleak.core.errors import ModelError
from gradleak.core.rng import derive
from gradleak.mechanics.attention.softmax import Attention, data_jacobian
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.derivatives.jacobian import Jacobian, attention_jacobian, flatten, update_jacobian
from gradleak.models import Subject, load_subject
from gradleak.theory.error.bounds import estimated_bounds, exact_bounds
from gradleak.theory.error.influence import influence
from gradleak.theory.noise.meter import measure_noise

PAGES = Path(__file__).parents[2] / "docs" / "theory"
TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 260}
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 300}


def row(*cells: object) -> None:
    print("| " + " | ".join(str(each) for each in cells) + " |", flush=True)


def head(title: str, *cells: str) -> None:
    print(f"\n## {title}\n")
    row(*cells)
    row(*["---"] * len(cells))


def layer_and_data(n: int, d: int, seed: int) -> tuple[Attention, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = ((n, d), (n, d), (1, d, d), (1, d, d))
    x, b, w, v = (torch.randn(*shape, dtype=torch.float64, generator=rng) for shape in shapes)
    return Attention(scores=w / math.sqrt(d), values=v / math.sqrt(d), scale=1 / math.sqrt(d)), x, b


def match(layer: Attention, x: Tensor, b: Tensor, target: Tensor, *, prior: float, steps: int = 12) -> Tensor:
    """argmin ½‖g(X) − target‖² + ½ prior ‖X‖² near x, by Gauss–Newton with halved steps."""

    def value(x: Tensor) -> float:
        return float((layer.at(x, b).gradient().flat() - target).square().sum() + prior * x.square().sum())

    best = value(x)
    for _ in range(steps):
        point = layer.at(x, b)
        j = data_jacobian(point)
        slope = j.T @ (point.gradient().flat() - target) + prior * x.flatten()
        step = torch.linalg.solve(j.T @ j + prior * torch.eye(x.numel(), dtype=x.dtype), slope).view_as(x)
        while value(x - step) > best and float(step.norm()) > 1e-13:
            step = step / 4
        x, best = x - step, min(best, value(x - step))
    return x


def error_law() -> None:
    levels = [10.0**power for power in (-6, -5, -4, -3, -2, -1)]
    cells = ("n, d", "unknowns", *(f"{level:g}" for level in levels))
    head("Error law: measured over predicted RMSE, noise in units of the gradient's rms, 30 draws", *cells)
    series = []
    for n, d in ((4, 8), (8, 16), (4, 32), (8, 8)):
        layer, x, b = layer_and_data(n, d, seed=1)
        point = layer.at(x, b)
        clean = point.gradient().flat()
        rms = float(clean.square().mean().sqrt())
        jacobian = attention_jacobian(point).dense()
        rng, ratios, measured = torch.Generator().manual_seed(2), [], []
        for level in levels:
            noise = (level * rms * torch.randn(clean.shape, dtype=clean.dtype, generator=rng) for _ in range(30))
            gaps = [(match(layer, x, b, clean + each, prior=0.0) - x).square().mean() for each in noise]
            measured.append((level, float(torch.stack(gaps).mean().sqrt())))
            ratios.append(measured[-1][1] / exact_bounds(jacobian, sigma=level * rms).rmse)
        row(f"{n}, {d}", x.numel(), *(f"{ratio:.2f}" for ratio in ratios))
        if (n, d) in {(4, 8), (8, 8)}:
            fine = [10 ** (-6 + i / 4) for i in range(25)]
            law = [(f, exact_bounds(jacobian, sigma=f * rms).rmse) for f in fine]
            series.append(Series(label=f"law, n = {n}, d = {d}", points=law))
            series.append(Series(label=f"measured, n = {n}, d = {d}", points=measured, dots=True))
            prior = [(f, exact_bounds(jacobian, sigma=f * rms, prior_std=1.0).rmse_with_prior or 0.0) for f in fine]
            series.append(Series(label=f"law with N(0, 1) prior, n = {n}, d = {d}", points=prior, dashed=True))
    write_chart(
        PAGES / "reconstruction-error.svg",
        title="Error of the best reconstruction under Gaussian noise",
        x=Axis(label="noise in units of the gradient's rms", log=True),
        y=Axis(label="root mean squared error of X (its entries have variance 1)", log=True),
        series=series,
    )


def influences() -> None:
    layer, x, b = layer_and_data(4, 8, seed=3)
    jacobian = attention_jacobian(layer.at(x, b))
    clean = flatten(jacobian.update)
    order, rms = clean.abs().argsort(), float(clean.square().mean().sqrt())
    columns = ("perturbation", "predicted", "measured", "ratio", "lower bound by quotient", "by eigenvalue (published)")
    head("Influence on bare attention, n = 4, d = 8", *columns)
    predicted, measured, by_quotient, by_eigenvalue = [], [], [], []
    rng = torch.Generator().manual_seed(0)
    perturbations: list[tuple[str, float, Tensor]] = []
    for level in (1e-6, 1e-4, 1e-3, 1e-2, 1e-1):
        noise = level * rms * torch.randn(clean.shape, dtype=clean.dtype, generator=rng)
        perturbations.append((f"noise {level:g} rms", level, noise))
    for fraction in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8):
        pruned = torch.zeros_like(clean)
        gone = order[: int(fraction * len(clean))]
        pruned[gone] = -clean[gone]
        perturbations.append((f"prune {fraction:.0%}", fraction, pruned))
    for name, level, delta in perturbations:
        named = {"scores": delta[:64].view(1, 8, 8), "values": delta[64:].view(1, 8, 8)}
        found = influence(jacobian, named, tolerance=1e-12)
        moved = float((match(layer, x, b, clean + delta, prior=0.0, steps=40) - x).norm())
        ratio = f"{found.norm / moved:.3f}"
        row(name, f"{found.norm:.3g}", f"{moved:.3g}", ratio, f"{found.lower_by_quotient:.2g}", f"{found.lower:.2g}")
        if name.startswith("prune"):
            predicted.append((level, found.norm))
            measured.append((level, moved))
            by_quotient.append((level, found.lower_by_quotient))
            by_eigenvalue.append((level, found.lower))
    write_chart(
        PAGES / "influence.svg",
        title="Pruning a gradient: how far the reconstruction moves",
        x=Axis(label="share of the entries set to zero", low=0.0, high=0.8),
        y=Axis(label="‖dX‖ (‖X‖ is about 5.7)", log=True),
        series=[
            Series(label="predicted, first order", points=predicted),
            Series(label="measured, matching to the end", points=measured, dots=True),
            Series(label="lower bound by quotient (ours)", points=by_quotient, dashed=True),
            Series(label="lower bound by eigenvalue (published)", points=by_eigenvalue, dashed=True),
        ],
    )


def influence_on_gpt2() -> None:
    subject = load_subject("random:gpt2", loss="classification", settings=TINY)
    subject.module.double()
    with torch.no_grad():
        for name, value in subject.parameters().items():
            if value.ndim == 2 and "wte" not in name:
                value.mul_(10.0)
    ids = torch.tensor([[5, 9, 11, 3]])
    x, mask = subject.embed(ids).detach() * 10, torch.ones_like(ids, dtype=torch.bool)
    targets = soft_labels(torch.tensor([1]), subject.classes).double()
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    jacobian = update_jacobian(trainer, x, targets, mask)
    clean, rng = jacobian.update, torch.Generator().manual_seed(0)
    size = float(flatten(clean).square().mean().sqrt())
    seen_rows = _seen(jacobian.dense())
    title = "Influence on a one-block GPT-2 (float64, 10 times the published weight scale), 32 unknowns"
    head(title, "noise, in units of the update's rms", "predicted ‖dx‖", "measured", "ratio", "solver steps")
    for level in (1e-9, 1e-8, 1e-7, 1e-6):
        noise = {k: level * size * torch.randn(t.shape, dtype=t.dtype, generator=rng) for k, t in clean.items()}
        found = influence(jacobian, noise, tolerance=1e-12)
        moved = x
        for _ in range(8):
            now = trainer.replay(moved, targets, mask)
            gap = flatten({name: (now[name] - clean[name] - noise[name]).detach() for name in clean})
            u, s, vt = torch.linalg.svd(update_jacobian(trainer, moved, targets, mask).dense(), full_matrices=False)
            keep = s > 1e-9 * s[0]
            moved = moved - (vt[keep].T @ ((u[:, keep].T @ gap) / s[keep])).view_as(moved)
        measured = float((seen_rows @ (moved - x).flatten()).norm())
        row(f"{level:g}", f"{found.norm:.3g}", f"{measured:.3g}", f"{found.norm / measured:.3f}", found.iterations)


def _seen(matrix: Tensor) -> Tensor:
    _, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return vt[s > 1e-9 * s[0]]


def quadrature() -> None:
    values = torch.exp(2.0 * torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    values[:20] = 0.0
    rotation = torch.linalg.qr(torch.randn(400, 400, dtype=torch.float64, generator=derive(0, "rotation")))[0]
    jacobian = Jacobian(
        shape=(400,),
        update={"g": torch.zeros(400, dtype=torch.float64)},
        forward=lambda v: {"g": values * (rotation @ v)},
        adjoint=lambda r: rotation.T @ (values * r["g"]),
    )
    steps = (5, 10, 20, 40)
    columns = ("σ", "exact", "Fisher trace, with prior", *(f"SLQ {k} steps [low, high]" for k in steps))
    head("Quadrature on a log-normal spectrum, d = 400 with 20 null directions, prior 1, 10 probes", *columns)
    for sigma in (0.01, 0.1, 1.0):
        exact = float((1 / ((values / sigma).square() + 1)).mean())
        weak = 1 / (float((values / sigma).square().mean()) + 1)
        cells = []
        for k in steps:
            found = estimated_bounds(
                jacobian, sigma=sigma, prior_std=1.0, rng=torch.Generator().manual_seed(5), probes=10, steps=k
            ).with_prior
            cells.append(f"{found.lower:.4f}, {found.upper:.4f} ± {found.standard_error:.4f}")
        row(sigma, f"{exact:.4f}", f"{weak:.2g}", *cells)


def meter() -> None:
    models = {
        "gpt2": "causal-lm",
        "llama": "causal-lm",
        "mistral": "causal-lm",
        "qwen3": "causal-lm",
        "gpt_neox": "causal-lm",
        "bert": "classification",
        "vit": "classification",
    }
    levels = [10.0**power for power in range(-7, 1)]
    columns = ("model", "equations", *(f"{level:g}" for level in levels[2:]), "floor")
    head("Noise meter: estimate over truth, noise in units of the attention gradients' rms", *columns)
    series = []
    for name, loss in models.items():
        vision = {"image_size": 32, "patch_size": 16} if name == "vit" else {}
        sizes = {k: v for k, v in SMALL.items() if name != "vit" or k != "vocab_size"}
        subject = load_subject(f"random:{name}", loss=loss, settings=sizes | vision)
        series.append(_meter_row(name, subject, levels))
    try:
        _meter_row("MiniLM (pretrained)", load_subject("minilm", loss="classification"), levels)
    except ModelError:
        print("\nMiniLM is not installed.")
    write_chart(
        PAGES / "noise-meter.svg",
        title="Noise read from one update, without its data",
        x=Axis(label="noise that was added, in units of the attention gradients' rms", log=True),
        y=Axis(label="noise that the identities tell", log=True),
        series=[
            Series(label="truth", points=[(levels[0], levels[0]), (1.0, 1.0)]),
            *(s for s in series if s.label in {"gpt2", "llama", "qwen3", "bert", "vit"}),
        ],
    )


def _meter_row(name: str, subject: Subject, levels: list[float]) -> Series:
    rng = derive(0, "meter", name)
    if subject.modality == "image":
        inputs, mask = torch.rand(2, *subject.pixel_shape, generator=rng), torch.ones(2, dtype=torch.bool)
    else:
        inputs = torch.randint(1, 250, (2, 16), generator=rng)
        mask = torch.ones_like(inputs, dtype=torch.bool)
    labels = torch.tensor([0, 1]) if subject.loss.name == "classification" else inputs
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    update = trainer.update(Batch(inputs=inputs, mask=mask, labels=labels), rng)
    names = {
        name
        for block in subject.anatomy.blocks
        for m in block.maps()[: len(block.attention_inputs) + 1]
        for name in (m.weight, m.bias)
        if name
    }
    used = {name: tensor for name, tensor in update.items() if name in names}
    rms = float(torch.cat([t.flatten() for t in used.values()]).square().mean().sqrt())
    points, bars, ratios = [], [], []
    for level in levels:
        noisy = {n: t + level * rms * torch.randn(t.shape, generator=rng) for n, t in used.items()}
        reading = measure_noise(noisy, subject)
        points.append((level, reading.std / rms))
        bars.append((reading.low / rms, reading.high / rms))
        ratios.append(f"{reading.std / rms / level:.3f}")
    clean = measure_noise(used, subject)
    row(name, clean.equations, *ratios[2:], f"{clean.relative:.0e}")
    return Series(label=name, points=points, bars=bars, dots=True)


def print_page() -> None:
    torch.set_num_threads(1)
    started = time.process_time()
    print("# Noise: theory and measurement\n")
    print("Printed by `python -m benchmarks.theory.noise_theory`, which also draws the charts of `docs/theory`.")
    error_law()
    influences()
    influence_on_gpt2()
    quadrature()
    meter()
    print(f"\n{time.process_time() - started:.0f} CPU seconds, one thread.")


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=None):
        print_page()


if __name__ == "__main__":
    main()
