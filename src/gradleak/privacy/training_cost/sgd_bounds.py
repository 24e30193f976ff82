"""Why: what noise costs a training run, as bounds with every constant spelled out. Both the accountant (what does this ε
cost) and the theory (does the bound hold on a simulated run) read them. Must not know channels, models or data: numbers in,
numbers out.

Symbols, the same throughout:

    P     number of parameters                 s     standard deviation of the noise in one coordinate of the averaged gradient
    T     number of steps                      s     = z·C/B for noise multiplier z, clip norm C and batch size B
    η     learning rate                        P·s²  the noise energy: E‖noise‖² of one step
    R     ‖w₀ - w*‖                            Δ₀    f(w₀) - f*
    G     bound on the norm of the un-noised   L     smoothness: ‖∇f(u) - ∇f(v)‖ ≤ L‖u - v‖
          stochastic gradient                  λ     strong convexity
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradleak.core.errors import UsageError


def noise_energy(noise_multiplier: float, clip_norm: float, batch_size: float, parameters: int) -> float:
    """P·s², the expected squared norm of the noise in one averaged gradient.

    Args:
        noise_multiplier: z, standard deviation of the noise on the *sum* in units of the clip norm, at least 0.
        clip_norm: C, positive.
        batch_size: B, the number that the sum is divided by, positive.
        parameters: P, at least 1.

    Raises:
        UsageError: for an argument out of range.
    """
    _require(noise_multiplier >= 0, "noise_multiplier", noise_multiplier, "at least 0")
    _positive(clip_norm=clip_norm, batch_size=batch_size, parameters=parameters)
    return parameters * (noise_multiplier * clip_norm / batch_size) ** 2


def convex(*, distance: float, gradient_bound: float, steps: int, learning_rate: float, energy: float) -> float:
    """Excess loss of the average iterate of SGD on a convex function.

        E f(w̄) - f* ≤ R²/(2ηT) + η·(G² + P·s²)/2

    Args:
        distance: R, positive.
        gradient_bound: G, at least 0; G² may be any bound on E‖un-noised stochastic gradient‖².
        steps: T, at least 1.
        learning_rate: η, positive.
        energy: P·s², see ``noise_energy``.

    Guarantees:
        Holds for unbiased gradients with independent zero-mean noise; w̄ = (w₀ + … + w_{T-1})/T. Clipping at C ≥ G leaves the
        gradients unbiased. With Poisson batches divided by the expected size B the second moment can exceed G²: give
        G·√(1 + 1/B).
    """
    _positive(distance=distance, steps=steps, learning_rate=learning_rate)
    _not_negative(gradient_bound=gradient_bound, energy=energy)
    return distance**2 / (2 * learning_rate * steps) + learning_rate * (gradient_bound**2 + energy) / 2


def convex_learning_rate(*, distance: float, gradient_bound: float, steps: int, energy: float) -> float:
    """The η that minimizes ``convex``: R/√(T·(G² + P·s²)). The bound is then R·√((G² + P·s²)/T)."""
    _positive(distance=distance, steps=steps)
    _not_negative(gradient_bound=gradient_bound, energy=energy)
    _require(gradient_bound + energy > 0, "gradient_bound", gradient_bound, "positive where there is no noise")
    return distance / math.sqrt(steps * (gradient_bound**2 + energy))


def strongly_convex(*, gradient_bound: float, strong_convexity: float, steps: int, energy: float) -> float:
    """Excess loss on a λ-strongly convex function, steps η_t = 2/(λ(t+1)), iterate t = 1…T weighted by t.

        E f(w̄) - f* ≤ 2·(G² + P·s²) / (λ·(T + 1))

    Args:
        gradient_bound: G, at least 0, at every iterate (the regularizer's gradient included).
        strong_convexity: λ, positive.
        steps: T, at least 1.
        energy: P·s².

    Source: Lacoste-Julien, Schmidt and Bach, arXiv 1212.2002, in the form of the project's notes.
    """
    _positive(strong_convexity=strong_convexity, steps=steps)
    _not_negative(gradient_bound=gradient_bound, energy=energy)
    return 2 * (gradient_bound**2 + energy) / (strong_convexity * (steps + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class SmoothBound:
    """The four parts of the bound on the mean squared gradient norm; ``total`` is the bound.

    Attributes:
        start: 2Δ₀/(ηT), what the starting point costs.
        sampling: L·η·σ²/B, what drawing batches costs.
        noise: L·η·P·s², what privacy noise costs.
        bias: mean ‖b_t‖², what clipping costs.
    """

    start: float
    sampling: float
    noise: float
    bias: float

    @property
    def total(self) -> float:
        return self.start + self.sampling + self.noise + self.bias


def smooth(
    *,
    initial_gap: float,
    smoothness: float,
    steps: int,
    learning_rate: float,
    sampling_variance: float,
    energy: float,
    bias_square: float = 0.0,
) -> SmoothBound:
    """Mean squared gradient norm of SGD with biased gradients on any L-smooth function.

        (1/T) Σ E‖∇f(w_t)‖² ≤ 2Δ₀/(ηT) + L·η·(σ²/B + P·s²) + (1/T) Σ E‖b_t‖²,   η ≤ 1/L

    where the step's gradient has conditional mean ∇f(w_t) + b_t. Proof: smoothness at w - ηg gives
    -η⟨∇, ∇+b⟩ + (Lη²/2)(‖∇+b‖² + variance), and for η ≤ 1/L the first two parts are at most -(η/2)‖∇‖² + (η/2)‖b‖².

    Args:
        initial_gap: Δ₀, at least 0; f(w₀) will do where the loss cannot be negative.
        smoothness: L, positive. An estimate makes the bound an estimate.
        steps: T, at least 1.
        learning_rate: η in (0, 1/L].
        sampling_variance: variance of the un-noised averaged gradient. For fixed-size batches at most σ²/B, σ² the variance
            of the per-example gradients: clipping is a projection onto a ball, which never spreads points. For Poisson
            batches divided by their expected size it is (1-q)·mean‖clip(g_i)‖²/B: the *second moment*, not the variance.
        energy: P·s².
        bias_square: mean ‖b_t‖² with b_t = mean clip(g_i) - mean g_i, measured along the run.

    Raises:
        UsageError: for an argument out of range, a learning rate above 1/L included.
    """
    _positive(smoothness=smoothness, steps=steps, learning_rate=learning_rate)
    _not_negative(initial_gap=initial_gap, sampling_variance=sampling_variance, energy=energy, bias_square=bias_square)
    # 1/L is computed by callers too; one rounding must not refuse it.
    _require(
        learning_rate * smoothness <= 1 + 1e-12, "learning_rate", learning_rate, f"at most 1/L = {1 / smoothness:g}"
    )
    return SmoothBound(
        start=2 * initial_gap / (learning_rate * steps),
        sampling=smoothness * learning_rate * sampling_variance,
        noise=smoothness * learning_rate * energy,
        bias=bias_square,
    )


def smooth_learning_rate(
    *, initial_gap: float, smoothness: float, steps: int, sampling_variance: float, energy: float
) -> float:
    """The η ≤ 1/L that minimizes ``smooth``: min(1/L, √(2Δ₀/(L·T·(σ²/B + P·s²))))."""
    _positive(smoothness=smoothness, steps=steps)
    _not_negative(initial_gap=initial_gap, sampling_variance=sampling_variance, energy=energy)
    spread = sampling_variance + energy
    if spread == 0:
        return 1 / smoothness
    return min(1 / smoothness, math.sqrt(2 * initial_gap / (smoothness * steps * spread)))


def local_noise_energy(energy: float, parameters: int, positive_trace: float, smoothness: float) -> float:
    """P·s² with P replaced by the effective dimension Tr(H)₊/L of the Hessian: sharper, and no certificate.

    Exact to second order at one point; the Hessian of a later iterate is another one. For dashed lines only.
    """
    _positive(parameters=parameters, smoothness=smoothness)
    _not_negative(energy=energy, positive_trace=positive_trace)
    return energy / parameters * min(positive_trace / smoothness, parameters)


def private_convex(
    *, distance: float, gradient_bound: float, steps: int, parameters: int, mu: float, records: int
) -> float:
    """``convex`` at its best η for full-batch private training whose whole run is μ-Gaussian private.

        R·G·√(1/T + P/(μN)²),   noise multiplier z = √T/μ, clip norm G

    Args:
        mu: μ of the whole run, positive.
        records: N, at least 1.
    """
    _positive(
        distance=distance, gradient_bound=gradient_bound, steps=steps, parameters=parameters, mu=mu, records=records
    )
    return distance * gradient_bound * math.sqrt(1 / steps + parameters / (mu * records) ** 2)


def private_convex_floor(*, distance: float, gradient_bound: float, parameters: int, mu: float, records: int) -> float:
    """The limit of ``private_convex`` for T → ∞: R·G·√P/(μN). Reached for T well above (μN)²/P."""
    _positive(distance=distance, gradient_bound=gradient_bound, parameters=parameters, mu=mu, records=records)
    return distance * gradient_bound * math.sqrt(parameters) / (mu * records)


def private_strongly_convex_floor(
    *, gradient_bound: float, strong_convexity: float, parameters: int, mu: float, records: int
) -> float:
    """The limit of ``strongly_convex`` for full-batch private training and T → ∞: 2·P·G²/(λ·μ²·N²)."""
    _positive(
        gradient_bound=gradient_bound, strong_convexity=strong_convexity, parameters=parameters, mu=mu, records=records
    )
    return 2 * parameters * gradient_bound**2 / (strong_convexity * (mu * records) ** 2)


def _positive(**values: float) -> None:
    for name, value in values.items():
        _require(math.isfinite(value) and value > 0, name, value, "positive and finite")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        _require(math.isfinite(value) and value >= 0, name, value, "finite and at least 0")


def _require(holds: bool, name: str, value: float, wanted: str) -> None:
    if not holds:
        raise UsageError(f"{name}={value} is out of range. {name} must be {wanted}.")
