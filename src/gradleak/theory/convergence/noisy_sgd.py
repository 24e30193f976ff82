"""A bound is worth its distance to what happens. Runs SGD with per-example clipping and Gaussian noise, many repeats at
once, and measures everything that the bounds of ``privacy.training_cost`` take as an input: the bias of clipping, how often
it is active, the variance of sampling. Must not know models or attacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.errors import SpecError
from gradleak.mechanics.attention.softmax import Attention, Point
from gradleak.theory.convergence.smoothness import smoothness


class Problem(Protocol):
    """A mean of example losses, evaluated for several parameter vectors at once."""

    @property
    def examples(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    def loss(self, w: Float[Tensor, "repeats parameters"]) -> Float[Tensor, " repeats"]: ...
    def gradients(self, w: Float[Tensor, "repeats parameters"]) -> Float[Tensor, "repeats examples parameters"]:
        """The gradient of every example."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What was measured, per step and averaged over the repeats.

    Attributes:
        loss: f(w_t).
        gradient_square: ‖∇f(w_t)‖².
        bias_square: ‖mean clip(g_i) − mean g_i‖².
        clipped: share of examples whose gradient was longer than the clip.
        sampling_variance: variance of the un-noised averaged gradient of a batch, around its own mean.
        average_loss: f at the average of w_0 … w_{t-1}; weighted_loss: with weights growing linearly.
    """

    loss: Float[Tensor, " steps"]
    gradient_square: Float[Tensor, " steps"]
    bias_square: Float[Tensor, " steps"]
    clipped: Float[Tensor, " steps"]
    sampling_variance: Float[Tensor, " steps"]
    average_loss: Float[Tensor, " steps"]
    weighted_loss: Float[Tensor, " steps"]


def run(
    problem: Problem,
    start: Float[Tensor, " parameters"],
    *,
    learning_rates: Float[Tensor, " steps"],
    batch_size: int,
    clip_norm: float,
    noise_multiplier: float,
    repeats: int,
    rng: torch.Generator,
) -> Run:
    """w ← w − η_t · (Σ_batch clip(g_i) + z·C·N(0, I)) / B, batches of fixed size drawn without replacement.

    Args:
        learning_rates: η_t, one per step.
        batch_size: B, from 1 to the number of examples.
        clip_norm: C, positive; infinity for no clipping, then without noise.
        noise_multiplier: z, at least 0.

    Raises:
        SpecError: for sizes out of range, or noise without a clip.
    """
    if not 1 <= batch_size <= problem.examples or not clip_norm > 0 or noise_multiplier < 0 or repeats < 1:
        raise SpecError(
            f"A run needs 1 ≤ batch_size ≤ {problem.examples}, clip_norm > 0, noise_multiplier ≥ 0 and repeats ≥ 1, got "
            f"{batch_size}, {clip_norm}, {noise_multiplier}, {repeats}."
        )
    if noise_multiplier > 0 and clip_norm == float("inf"):
        raise SpecError(
            "A noise multiplier is in units of the clip norm, and there is no clip. Give a finite clip_norm."
        )
    w = start.double().expand(repeats, -1).clone()
    mean, weighted = torch.zeros_like(w), torch.zeros_like(w)
    rows: list[Tensor] = []
    for t, rate in enumerate(learning_rates.tolist()):
        mean = mean + (w - mean) / (t + 1)
        weighted = weighted + (w - weighted) * 2 / (t + 2)
        gradients = problem.gradients(w)
        length = gradients.norm(dim=-1, keepdim=True)
        kept = gradients * (clip_norm / length.clamp(min=1e-300)).clamp(max=1.0)
        full, center = gradients.mean(1), kept.mean(1)
        rows.append(
            torch.stack(
                [
                    problem.loss(w).mean(),
                    full.square().sum(1).mean(),
                    (center - full).square().sum(1).mean(),
                    (length > clip_norm).double().mean(),
                    _sampling(kept, batch_size).mean(),
                    problem.loss(mean).mean(),
                    problem.loss(weighted).mean(),
                ]
            )
        )
        step = _draw(kept, batch_size, rng)
        if noise_multiplier:
            noise = torch.randn(w.shape, generator=rng, dtype=torch.float64)
            step = step + noise * (noise_multiplier * clip_norm / batch_size)
        w = w - rate * step
    return Run(**dict(zip(Run.__slots__, torch.stack(rows, dim=1), strict=True)))


def _draw(gradients: Tensor, batch_size: int, rng: torch.Generator) -> Tensor:
    repeats, examples, parameters = gradients.shape
    if batch_size == examples:
        return gradients.mean(1)
    chosen = torch.rand(repeats, examples, generator=rng).argsort(dim=1)[:, :batch_size]
    return gradients.gather(1, chosen.unsqueeze(-1).expand(-1, -1, parameters)).mean(1)


def _sampling(gradients: Tensor, batch_size: int) -> Tensor:
    """Variance of the mean of a batch drawn without replacement: σ²/B · (N − B)/(N − 1)."""
    examples = gradients.shape[1]
    if batch_size == examples:
        return gradients.new_zeros(gradients.shape[0])
    spread = (gradients - gradients.mean(1, keepdim=True)).square().sum(-1).mean(1)
    return spread / batch_size * (examples - batch_size) / (examples - 1)


@dataclass(frozen=True, slots=True)
class LogisticRegression:
    """Mean of ln(1 + exp(−y ⟨w, x⟩)) + λ‖w‖²/2: convex, and λ-strongly convex for λ > 0.

    Attributes:
        features: ``[examples parameters]``; signs: ±1 per example; strength: λ.
    """

    features: Float[Tensor, "examples parameters"]
    signs: Float[Tensor, " examples"]
    strength: float = 0.0

    @property
    def examples(self) -> int:
        return self.features.shape[0]

    @property
    def parameters(self) -> int:
        return self.features.shape[1]

    @property
    def smoothness(self) -> float:
        """L = λ_max(Xᵀ X)/(4N) + λ."""
        gram = self.features.double().T @ self.features.double() / self.examples
        return float(torch.linalg.eigvalsh(gram)[-1]) / 4 + self.strength

    def loss(self, w: Float[Tensor, "repeats parameters"]) -> Float[Tensor, " repeats"]:
        margins = (w @ self.features.double().T) * self.signs
        return torch.nn.functional.softplus(-margins).mean(1) + self.strength / 2 * w.square().sum(1)

    def gradients(self, w: Float[Tensor, "repeats parameters"]) -> Float[Tensor, "repeats examples parameters"]:
        margins = (w @ self.features.double().T) * self.signs
        pull = -self.signs * torch.sigmoid(-margins)
        return pull.unsqueeze(-1) * self.features.double() + self.strength * w.unsqueeze(1)


@dataclass(frozen=True, slots=True)
class AttentionScores:
    """Mean squared loss of one attention layer over sequences, as a function of its score weights W: not convex.

    Attributes:
        inputs: ``[examples seq model]``; targets: ``[examples seq out]``; values: V ``[model out]``; scale: of the logits.
    """

    inputs: Float[Tensor, "examples seq model"]
    targets: Float[Tensor, "examples seq out"]
    values: Float[Tensor, "model out"]
    scale: float

    @property
    def examples(self) -> int:
        return self.inputs.shape[0]

    @property
    def parameters(self) -> int:
        return self.inputs.shape[2] ** 2

    @property
    def smoothness(self) -> float:
        """The mean of the sequences' polynomial constants L_W."""
        every = (
            smoothness(x, self.values, b, scale=self.scale).gradient
            for x, b in zip(self.inputs, self.targets, strict=True)
        )
        return sum(every) / self.examples

    def _at(self, w: Float[Tensor, "repeats parameters"]) -> Point:
        width = self.inputs.shape[2]
        layer = Attention(
            scores=w.reshape(-1, 1, 1, width, width), values=self.values.double().unsqueeze(0), scale=self.scale
        )
        return layer.at(self.inputs.double(), self.targets.double())

    def loss(self, w: Float[Tensor, "repeats parameters"]) -> Float[Tensor, " repeats"]:
        return self._at(w).loss.mean(1)

    def gradients(self, w: Float[Tensor, "repeats parameters"]) -> Float[Tensor, "repeats examples parameters"]:
        return self._at(w).gradient().scores.sum(2).flatten(2)
