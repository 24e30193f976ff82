"""SGD with clipping and noise beside its bounds, and the smoothness constants of attention beside what is sampled.

python -m benchmarks.privacy.convergence
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize

from benchmarks.common import run
from benchmarks.common.chart import write_lines
from gradleak.core.rng import derive
from gradleak.privacy.training_cost import sgd_bounds
from gradleak.theory.convergence.noisy_sgd import AttentionScores, LogisticRegression, Run
from gradleak.theory.convergence.noisy_sgd import run as descend
from gradleak.theory.convergence.smoothness import smoothness

PLOTS = Path(__file__).parents[2] / "docs" / "theory"
RECORDS, PARAMETERS, BATCH, STEPS = 500, 20, 50, 2000


def logistic(strength: float = 0.0) -> tuple[LogisticRegression, float, float]:
    """The problem, the length of its minimizer and its least loss."""
    rng = derive(0, "logistic")
    x = torch.nn.functional.normalize(torch.randn(RECORDS, PARAMETERS, generator=rng).double(), dim=1)
    w = 5 * torch.nn.functional.normalize(torch.randn(PARAMETERS, generator=rng).double(), dim=0)
    y = torch.where(torch.rand(RECORDS, generator=rng) < torch.sigmoid(x @ w), 1.0, -1.0).double()
    problem = LogisticRegression(x, y, strength)

    def both(at: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(at).unsqueeze(0)
        return float(problem.loss(point)), problem.gradients(point)[0].mean(0).numpy()

    best = minimize(both, np.zeros(PARAMETERS), jac=True, method="L-BFGS-B", options={"gtol": 1e-10, "ftol": 1e-15})
    return problem, float(np.linalg.norm(best.x)), float(best.fun)


def go(problem: LogisticRegression, rates: torch.Tensor, clip: float, noise: float) -> Run:
    return descend(
        problem,
        torch.zeros(PARAMETERS),
        learning_rates=rates,
        batch_size=BATCH,
        clip_norm=clip,
        noise_multiplier=noise,
        repeats=4,
        rng=derive(0, "run", clip, noise),
    )


def row(*cells: object) -> None:
    print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")


def convex() -> None:
    problem, distance, least = logistic()
    print("## Convex, average iterate\n\n| z | bound | measured excess loss | bound / measured |\n|---|---|---|---|")
    for noise in (0.0, 1.0, 5.0, 20.0):
        energy = sgd_bounds.noise_energy(noise, 1.0, BATCH, PARAMETERS)
        rate = sgd_bounds.convex_learning_rate(distance=distance, gradient_bound=1.0, steps=STEPS, energy=energy)
        common = {"distance": distance, "gradient_bound": 1.0, "learning_rate": rate, "energy": energy}
        found = go(problem, torch.full((STEPS,), rate), 1.0, noise)
        excess, bound = float(found.average_loss[-1]) - least, sgd_bounds.convex(steps=STEPS, **common)
        row(noise, bound, excess, bound / excess)
        if noise == 20.0:
            steps = [s for s in range(10, STEPS + 1, 10)]
            # ``average_loss[t]`` is at the mean of w_0 … w_t: t + 1 steps.
            measured = [(float(s), float(found.average_loss[s - 1]) - least) for s in steps]
            above = [(float(s), sgd_bounds.convex(steps=s, **common)) for s in steps]
            write_lines(PLOTS / "convergence-convex.svg", "Convex, z = 20", {"bound": above, "measured": measured}, x="steps", y="excess loss of the average", log=(True, True), dashed=["bound"])  # fmt: skip


def strongly_convex() -> None:
    strength, clip = 0.05, 8.0
    problem, _, least = logistic(strength)
    rates = 2 / (strength * (torch.arange(STEPS).double() + 2))
    print("\n## Strongly convex (λ = 0.05), weighted average; G measured along the run, clip never active\n")
    print("| z·C | G | clipped | bound | measured excess loss | bound / measured |\n|---|---|---|---|---|---|")
    for noise in (5.0, 20.0):
        found = go(problem, rates, clip, noise / clip)
        energy = sgd_bounds.noise_energy(noise, 1.0, BATCH, PARAMETERS)
        largest = float((found.gradient_square + found.sampling_variance).max()) ** 0.5
        bound = sgd_bounds.strongly_convex(
            gradient_bound=largest, strong_convexity=strength, steps=STEPS, energy=energy
        )
        excess = float(found.weighted_loss[-1]) - least
        row(noise, largest, float(found.clipped.max()), bound, excess, bound / excess)


def smooth() -> None:
    problem, _, least = logistic()
    print("\n## Smooth, clipping bias measured\n")
    print(
        "| z | C | clipped | start | sampling | noise | bias | bound | measured mean ‖∇f‖² | bound / measured | without the bias term |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for noise, clip in ((0.0, 1.0), (5.0, 1.0), (20.0, 1.0), (5.0, 0.2), (5.0, 0.05)):
        energy = sgd_bounds.noise_energy(noise, clip, BATCH, PARAMETERS)
        rate = sgd_bounds.smooth_learning_rate(
            initial_gap=math.log(2) - least, smoothness=problem.smoothness, steps=STEPS, sampling_variance=clip**2 / BATCH, energy=energy
        )  # fmt: skip
        found = go(problem, torch.full((STEPS,), rate), clip, noise)

        def bound(steps: int, found: Run = found, rate: float = rate, energy: float = energy) -> sgd_bounds.SmoothBound:
            return sgd_bounds.smooth(
                initial_gap=math.log(2) - least,
                smoothness=problem.smoothness,
                steps=steps,
                learning_rate=rate,
                sampling_variance=float(found.sampling_variance[:steps].mean()),
                energy=energy,
                bias_square=float(found.bias_square[:steps].mean()),
            )

        whole, measured = bound(STEPS), float(found.gradient_square.mean())
        without = whole.total - whole.bias
        row(noise, clip, float(found.clipped.mean()), whole.start, whole.sampling, whole.noise, whole.bias, whole.total, measured, whole.total / measured, "crossed" if without < measured else "holds")  # fmt: skip
        if clip == 0.05:
            steps = [s for s in range(20, STEPS + 1, 20)]
            lines = {
                "bound with measured bias": [(float(s), bound(s).total) for s in steps],
                "without the bias": [(float(s), bound(s).total - bound(s).bias) for s in steps],
                "measured": [(float(s), float(found.gradient_square[:s].mean())) for s in steps],
            }
            write_lines(PLOTS / "convergence-clipped.svg", "Clipping at 0.05", lines, x="steps", y="mean squared gradient", log=(True, True), dashed=list(lines)[:2])  # fmt: skip


def attention() -> None:
    rng = derive(0, "attention")
    x, b = torch.randn(2, 16, 4, 3, generator=rng).double()
    problem = AttentionScores(x, b, torch.randn(3, 3, generator=rng).double() / math.sqrt(3), 1 / math.sqrt(3))
    print(f"\n## Attention's score weights under the polynomial constant L_W = {problem.smoothness:.3g}\n")
    print("| noise std per entry | bound | measured mean ‖∇f‖² | bound / measured |\n|---|---|---|---|")
    start = torch.zeros(problem.parameters, dtype=torch.float64)
    for noise in (0.0, 0.2, 1.0):
        clip, batch, steps = 40.0, 8, 400
        found = descend(
            problem,
            start,
            learning_rates=torch.full((steps,), 1 / problem.smoothness),
            batch_size=batch,
            clip_norm=clip,
            noise_multiplier=noise * batch / clip,
            repeats=20,
            rng=derive(0, "attention", noise),
        )
        bound = sgd_bounds.smooth(
            initial_gap=float(problem.loss(start.unsqueeze(0))),
            smoothness=problem.smoothness,
            steps=steps,
            learning_rate=1 / problem.smoothness,
            sampling_variance=float(found.sampling_variance.mean()),
            energy=sgd_bounds.noise_energy(noise, 1.0, 1.0, problem.parameters),
        ).total
        measured = float(found.gradient_square.mean())
        row(noise, bound, measured, bound / measured)


def constants() -> None:
    print("\n## Smoothness constants of attention (n = 4, d = 3) and what 400 draws show\n")
    print(
        "| seed | L_W | largest second derivative seen | M_W | largest third derivative seen | published exponential, log₁₀ |\n|---|---|---|---|---|---|"
    )
    for seed in range(3):
        rng = derive(seed, "constants")
        x, b = torch.randn(2, 4, 3, generator=rng).double()
        v, s = torch.randn(3, 3, generator=rng).double() / math.sqrt(3), 1 / math.sqrt(3)
        found, seen = smoothness(x, v, b, scale=s), [0.0, 0.0]
        for draw in range(400):
            w, direction = torch.randn(2, 3, 3, generator=rng).double()
            t = torch.zeros((), dtype=torch.float64, requires_grad=True)
            scores = s * x @ (w * 10.0 ** (draw % 4 - 2) + t * direction / direction.norm()) @ x.T
            value = 0.5 * (torch.softmax(scores, -1) @ x @ v - b).square().sum()
            for order in range(3):
                (value,) = torch.autograd.grad(value, t, create_graph=True)
                if order:
                    seen[order - 1] = max(seen[order - 1], abs(float(value.detach())))
        row(seed, found.gradient, seen[0], found.hessian, seen[1], found.published_log10)


def print_page() -> None:
    print("# Convergence under perturbed gradients\n\nPrinted by `python -m benchmarks.privacy.convergence`.\n")
    for part in (convex, strongly_convex, smooth, attention, constants):
        part()


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=None):
        print_page()


if __name__ == "__main__":
    main()
