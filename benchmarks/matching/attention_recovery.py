"""How often the data of one bare attention layer are recovered from its gradient, by attack, size and start.

    python -m benchmarks.matching.attention_recovery

X, B ~ N(0, 1); weights ~ N(0, 1)/√d; s = 1/√head_dim; targets known unless said; success is a relative error of X below
1e-6. Beside each rate of ours in brackets: that of the project's reconstruction notes, another program with other draws.
About five CPU minutes; `--only near,random,multi,unknown,staged,bias` picks tables.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from scipy.stats import fisher_exact
from torch import Tensor

from benchmarks.common import run
from benchmarks.common.chart import Axis, Series, write_chart
from gradleak.attacks.attention_exact.refine import AttentionMatching
from gradleak.attacks.attention_exact.solve import mixed_values, recover
from gradleak.core.attack import Clock
from gradleak.matching.optimizers import LBFGS, Stopping
from gradleak.mechanics.attention.softmax import Attention, Heads
from gradleak.mechanics.derivatives.least_squares import DenseLinearized, LevenbergMarquardt

PAGES = Path(__file__).parents[2] / "docs" / "theory"
TRIALS = 20
ITERATIONS = 120
FLOOR = 1e-26


def draw(n: int, d: int, heads: int, trials: int, seed: int) -> tuple[Heads, Tensor, Tensor, torch.Generator]:
    """Weights, X and B of independent instances."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(trials, *shape, dtype=torch.float64, generator=rng)

    x, b, k = normal(n, d), normal(n, d), d // heads
    root = math.sqrt(d)
    if heads == 1:
        eye = torch.eye(d, dtype=torch.float64).expand(trials, 1, d, d)
        layer = Heads(query=normal(1, d, d) / root, key=eye, value=normal(1, d, d) / root, output=eye, scale=1 / root)
    else:
        q, key, v, o = (normal(heads, *shape) / root for shape in ((d, k), (d, k), (d, k), (k, d)))
        layer = Heads(query=q, key=key, value=v, output=o, scale=1 / math.sqrt(k))
    return layer, x, b, rng


def matching(
    heads: Heads, x: Tensor, b: Tensor, *, known: bool = True, basis: Tensor | None = None
) -> AttentionMatching:
    collapsed = heads.query.shape[-3] == 1
    gradient = heads.layer().at(x, b).gradient()
    observed = (gradient if collapsed else heads.split(gradient)).flat()
    return AttentionMatching(
        heads=heads,
        observed=observed,
        seq=x.shape[-2],
        out=b.shape[-1],
        targets=b if known else None,
        basis=basis,
        collapsed=collapsed,
    )


def away(x: Tensor, distance: float, rng: torch.Generator) -> Tensor:
    step = torch.randn(x.shape, dtype=x.dtype, generator=rng)
    return x + distance * step * (x.norm(dim=(1, 2)) / step.norm(dim=(1, 2)))[:, None, None]


def solve(problem: AttentionMatching, start: Tensor, damping: float = 1e-3) -> tuple[Tensor, Tensor]:
    solver = LevenbergMarquardt(iterations=ITERATIONS, damping=damping)
    return solver.run(problem, start.flatten(1), lambda _i, value, _x: value < FLOOR)


def errors(found: Tensor, x: Tensor) -> Tensor:
    return (found[:, : x[0].numel()] - x.flatten(1)).norm(dim=1) / x.flatten(1).norm(dim=1)


def successes(found: Tensor, x: Tensor) -> int:
    return int((errors(found, x) < 1e-6).sum())


def cell(count: int, trials: int, noted: tuple[int, int] | None = None) -> str:
    if noted is None:
        return f"{count}/{trials}"
    p = fisher_exact([[count, trials - count], [noted[0], noted[1] - noted[0]]]).pvalue
    return f"{count}/{trials} ({noted[0]}/{noted[1]}{'' if p > 0.05 else f', p = {p:.3f}'})"


def row(*cells: object) -> None:
    print("| " + " | ".join(str(each) for each in cells) + " |", flush=True)


def head(title: str, *cells: str) -> None:
    print(f"\n## {title}\n")
    row(*cells)
    row(*["---"] * len(cells))


def newton(problem: AttentionMatching, start: Tensor) -> Tensor:
    """Pure Newton: the full Hessian of ½‖r‖², JᵀJ plus the second derivatives of the gradient weighted by r."""
    basis = torch.eye(start[0].numel(), dtype=start.dtype)
    x = start.flatten(1)
    for _ in range(60):
        local = problem.at(x)
        h = 1e-6
        columns = [(problem.at(x + h * e).slope - problem.at(x - h * e).slope) / (2 * h) for e in basis]
        step = torch.linalg.lstsq(torch.stack(columns, 2), -local.slope[..., None]).solution[..., 0]
        x = torch.where(torch.isfinite(step), x + step, x).clamp(-1e6, 1e6)
    return x


def near() -> None:
    noted = {
        (4, 8): ((20, 20, 20, 20, 19), (20, 20, 20, 17, 15)),
        (8, 16): ((20, 20, 20, 20, 18), (20, 20, 20, 18, 16)),
        (8, 8): ((20, 20, 20, 18, 16), (20, 20, 18, 11, 7)),
        (12, 8): ((20, 20, 18, 15, 8), (20, 19, 6, 0, 0)),
        (16, 8): ((19, 17, 5, 0, 0), (0, 0, 0, 0, 0)),
    }
    distances = (0.1, 0.3, 0.5, 0.7, 1.0)
    series = []
    for name, damping, which in (("Levenberg–Marquardt", 1e-3, 0), ("Gauss–Newton, undamped", 0.0, 1)):
        head(f"From a start at a relative distance, one head: {name}", "n, d", *map(str, distances))
        for (n, d), rates in noted.items():
            heads, x, b, rng = draw(n, d, 1, TRIALS, seed=n * 100 + d)
            problem = matching(heads, x, b)
            counts = [successes(solve(problem, away(x, rho, rng), damping)[0], x) for rho in distances]
            row(f"{n}, {d}", *(cell(c, TRIALS, (r, 20)) for c, r in zip(counts, rates[which], strict=True)))
            if (n, d) in {(4, 8), (12, 8)}:
                points = [(rho, c / TRIALS) for rho, c in zip(distances, counts, strict=True)]
                series.append(Series(label=f"{name}, n = {n}, d = {d}", points=points, dashed=n == 12))
    head("The same with Newton's method on the full Hessian", "n, d", "0.003", "0.01", "0.03", "0.1", "0.3")
    for (n, d), rates in {(3, 4): (20, 19, 17, 5, 1), (4, 8): (20, 20, 19, 6, 0)}.items():
        heads, x, b, rng = draw(n, d, 1, TRIALS, seed=n * 100 + d)
        problem = matching(heads, x, b)
        counts = [successes(newton(problem, away(x, rho, rng)), x) for rho in (0.003, 0.01, 0.03, 0.1, 0.3)]
        row(f"{n}, {d}", *(cell(c, TRIALS, (r, 20)) for c, r in zip(counts, rates, strict=True)))
        if (n, d) == (4, 8):
            points = [(rho, c / TRIALS) for rho, c in zip((0.003, 0.01, 0.03, 0.1, 0.3), counts, strict=True)]
            series.append(Series(label=f"Newton, full Hessian, n = {n}, d = {d}", points=points))
    write_chart(
        PAGES / "recovery.svg",
        title="Recoveries of 20 from a start near the truth",
        x=Axis(label="distance of the start, relative to ‖X‖", log=True, low=0.001, high=1.0),
        y=Axis(label="share recovered to 1e-6", low=0.0, high=1.6),
        series=series,
    )


def lbfgs(problem: AttentionMatching, start: Tensor) -> Tensor:
    # The search keeps one winner over all starts; here every start is an instance of its own, so they run one by one.
    found = []
    for i in range(len(start)):
        alone = problem.select(torch.tensor([i]))
        result = LBFGS(iterations=600).minimize(
            lambda v, alone=alone: alone.value(v["x"]),
            {"x": start[i : i + 1].flatten(1)},
            stopping=Stopping(target=1e-24, patience=100),
            clock=Clock(),
        )
        found.append(result.variables["x"])
    return torch.stack(found)


def random_start() -> None:
    noted: dict[tuple[int, int], tuple[tuple[int, int] | None, ...]] = {
        (2, 4): ((10, 20), (12, 20), (10, 20), None, None),
        (4, 4): ((5, 20), (4, 20), None, (4, 20), (4, 20)),
        (4, 8): ((7, 20), (6, 20), (8, 20), (7, 20), (6, 20)),
        (8, 8): ((3, 20), (1, 20), (3, 20), (7, 20), (0, 20)),
        (8, 16): ((3, 20), (6, 20), (3, 20), (6, 20), (8, 20)),
    }
    title = "One random start N(0, 1)"
    head(title, "n, d", "LM, H=1", "LM in the token subspace", "L-BFGS (DLG)", "LM, H=2", "LM, H=4")
    for (n, d), rates in noted.items():
        counts: list[int | None] = []
        heads, x, b, rng = draw(n, d, 1, TRIALS, seed=n * 1000 + d)
        start = torch.randn(x.shape, dtype=x.dtype, generator=rng)
        problem = matching(heads, x, b)
        counts.append(successes(solve(problem, start)[0], x))
        values = heads.layer().at(x, b).gradient().values[:, 0]
        basis = torch.linalg.svd(values)[0][:, :, :n].mT
        narrow = matching(heads, x, b, basis=basis)
        found, _ = solve(narrow, start @ basis.mT)
        counts.append(successes(narrow.data(found)[0].flatten(1), x))
        counts.append(successes(lbfgs(problem, start), x) if rates[2] else None)
        for h, rate in ((2, rates[3]), (4, rates[4])):
            if rate is None:
                counts.append(None)
                continue
            heads, x, b, rng = draw(n, d, h, TRIALS, seed=n * 1000 + d + h)
            start = torch.randn(x.shape, dtype=x.dtype, generator=rng)
            counts.append(successes(solve(matching(heads, x, b), start)[0], x))
        row(f"{n}, {d}", *("" if c is None else cell(c, TRIALS, r) for c, r in zip(counts, rates, strict=True)))


def multi() -> None:
    instances, starts = 12, 60
    columns = ("n, d", "solved", "median starts", "wrong points with zero residual")
    head(f"Levenberg–Marquardt from up to {starts} random starts, one head, {instances} instances", *columns)
    for (n, d), noted in {(4, 4): 11, (6, 4): 12, (4, 8): 12, (8, 8): 12, (8, 4): 0}.items():
        heads, x, b, rng = draw(n, d, 1, instances, seed=n * 77 + d)
        index = torch.arange(instances).repeat_interleave(starts)
        problem = matching(heads, x, b).select(index)
        found, values = solve(problem, torch.randn(len(index), n, d, dtype=x.dtype, generator=rng))
        right = (errors(found, x[index]) < 1e-6).view(instances, starts)
        scale = problem.observed.square().sum(1)
        wrong = int(((values / scale < 1e-20).view(instances, starts) & ~right).sum())
        solved = right.any(1)
        first = sorted((right[solved].int().argmax(1) + 1).tolist())
        row(
            f"{n}, {d}" + (" (n = 2d)" if n == 2 * d else ""),
            cell(int(solved.sum()), instances, (noted, 12)),
            first[len(first) // 2] if first else "–",
            wrong,
        )


def unknown() -> None:
    head("Targets unknown: X and B searched together from one random start", "n, d, H", "X", "−X", "n, d, H from 0.3")
    for h, plus, minus, close in ((1, 0, 0, 0), (2, 6, 6, 20), (4, 11, 4, 20)):
        heads, x, b, rng = draw(4, 8, h, TRIALS, seed=500 + h)
        problem = matching(heads, x, b, known=False)
        truth = torch.cat((x.flatten(1), b.flatten(1)), 1)
        found, _ = solve(problem, torch.randn(truth.shape, dtype=x.dtype, generator=rng))
        inputs = problem.data(found)[0]
        signed = [sum(same_tokens(s * y, t) for y, t in zip(inputs, x, strict=True)) for s in (1.0, -1.0)]
        step = torch.randn(truth.shape, dtype=x.dtype, generator=rng)
        start = truth + 0.3 * step * (truth.norm(dim=1) / step.norm(dim=1))[:, None]
        back = problem.data(solve(problem, start)[0])[0]
        returned = sum(same_tokens(y, t) for y, t in zip(back, x, strict=True))
        noted = [(plus, 20), (minus, 20), (close, 20)]
        row(f"4, 8, {h}", *(cell(c, TRIALS, r) for c, r in zip((*signed, returned), noted, strict=True)))


def same_tokens(found: Tensor, truth: Tensor) -> bool:
    """Equal up to the order of the tokens."""
    distance = torch.cdist(found, truth)
    return bool(
        (distance.min(1).values < 1e-6 * truth.norm()).all() and distance.argmin(1).unique().numel() == len(truth)
    )


def staged() -> None:
    title = "The staged exact attack"
    head(title, "n, d, H", "stage 1, worst relative error", "recovered", "starts, median / most", "wrong and certified")
    sizes = [
        (2, 4, 1, 20),
        (4, 8, 1, 20),
        (4, 16, 1, 20),
        (8, 16, 1, 20),
        (8, 32, 1, 20),
        (16, 32, 1, 6),
        (4, 8, 2, 20),
    ]
    sizes += [(4, 16, 4, 20), (4, 8, 4, 20), (8, 16, 4, 20), (8, 16, 8, 20)]
    noted = (20, 20, 20, 19, 20, 6, 20, 20, 19, 19, 20)
    total = [0, 0]
    for (n, d, h, trials), rate in zip(sizes, noted, strict=True):
        heads, x, b, rng = draw(n, d, h, trials, seed=n * 31 + d + h)
        worst, right, wrong, starts = 0.0, 0, 0, []
        for i in range(trials):
            one = Heads(
                query=heads.query[i], key=heads.key[i], value=heads.value[i], output=heads.output[i], scale=heads.scale
            )
            point = one.layer().at(x[i], b[i])
            gradient = one.split(point.gradient())
            mixed = mixed_values(one, gradient.output, b[i])
            truth = (point.weights @ (x[i] @ one.value)).transpose(0, 1).flatten(1)
            worst = max(worst, float((mixed - truth).norm() / truth.norm()))
            found = recover(one, gradient, b[i], rng=rng)
            good = float((found.inputs - x[i]).norm() / x[i].norm()) < 1e-6
            right, wrong = right + good, wrong + (found.exact and not good)
            starts.append(found.starts)
        total = [total[0] + right, total[1] + trials]
        middle = sorted(starts)[trials // 2]
        row(f"{n}, {d}, {h}", f"{worst:.0e}", cell(right, trials, (rate, trials)), f"{middle} / {max(starts)}", wrong)
    print(f"\nAll together {total[0]}/{total[1]}. Starts come in batches: 1, then 8 at a time.")


def bias() -> None:
    title = "A regularizer that makes the loss convex moves the minimum away from the data (n = 4, d = 6)"
    head(title, "λ", "from the attention output (noted)", "from the gradient")
    heads, x, b, _ = draw(4, 6, 1, TRIALS, seed=46)
    gradient = matching(heads, x, b)
    layer = heads.layer()
    for weight, noted in ((0.0, 0.0), (1e-4, 0.18), (1e-2, 0.72), (0.1, 0.83), (1.0, 0.89), (103.0, 0.997)):
        medians = [
            float(errors(LevenbergMarquardt(iterations=300).run(p, x.flatten(1), lambda *_: False)[0], x).median())
            for p in (Ridge(OutputInversion(layer, layer.output(x)), weight), Ridge(gradient, weight))
        ]
        row(weight, f"{medians[0]:.3f} ({noted})", f"{medians[1]:.3f}")
    print("\nMedian relative error of X over 20 instances; the search starts at the truth.")


class OutputInversion:
    """½ ‖Y(X) − Y*‖²: the data from the output of attention, the problem of arXiv 2310.12462."""

    def __init__(self, layer: Attention, goal: Tensor) -> None:
        self.layer, self.goal = layer, goal

    def at(self, x: Tensor) -> DenseLinearized:
        y = x.unflatten(1, self.goal.shape[1:])
        basis = torch.eye(x.shape[1], dtype=x.dtype).unflatten(1, (1, *self.goal.shape[1:]))
        columns = self.layer.at(y, self.goal).output_jvp(basis).flatten(-2)
        return DenseLinearized.of((self.layer.output(y) - self.goal).flatten(1), columns.movedim(0, -1))

    def value(self, x: Tensor) -> Tensor:
        return 0.5 * (self.layer.output(x.unflatten(1, self.goal.shape[1:])) - self.goal).square().sum((1, 2))


class Ridge:
    """A problem plus ½ λ ‖X‖²."""

    def __init__(self, problem: AttentionMatching | OutputInversion, weight: float) -> None:
        self.problem, self.weight = problem, weight

    def at(self, x: Tensor) -> DenseLinearized:
        local = self.problem.at(x)
        eye = math.sqrt(self.weight) * torch.eye(x.shape[1], dtype=x.dtype).expand(len(x), -1, -1)
        residual = torch.cat((local.residual, math.sqrt(self.weight) * x), 1)
        return DenseLinearized.of(residual, torch.cat((local.jacobian, eye), 1))

    def value(self, x: Tensor) -> Tensor:
        return self.problem.value(x) + 0.5 * self.weight * x.square().sum(1)


TABLES: Mapping[str, Callable[[], None]] = {
    "near": near,
    "random": random_start,
    "multi": multi,
    "unknown": unknown,
    "staged": staged,
    "bias": bias,
}


def print_page(asked: argparse.Namespace) -> None:
    names = asked.only.split(",")
    torch.set_num_threads(1)
    started = time.process_time()
    print("# Recovery of the data of one attention layer\n")
    print("Successes of 20 (or as written); in brackets the rate of the notes, with the p-value of Fisher's exact test")
    print("where it is below 0.05. Printed by `python -m benchmarks.matching.attention_recovery`.")
    for name in names:
        TABLES[name]()
    print(f"\n{time.process_time() - started:.0f} CPU seconds, one thread, float64.")


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--only", default=",".join(TABLES), help="comma-separated tables")
    asked = run.parse(parser, argv)
    with run.record(__file__, asked, seeds=None):
        print_page(asked)


if __name__ == "__main__":
    main()
