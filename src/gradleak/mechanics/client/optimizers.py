"""One step of the client's optimizer, as a differentiable map from weights and gradients to weights.
Must not know models or losses.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gradleak.mechanics.client.settings import LocalTraining

_ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8
"""The defaults of Kingma and Ba (arXiv 1412.6980), which PyTorch's AdamW shares."""

Moments = dict[str, tuple[Tensor, Tensor]]
"""What the optimizer remembers of each parameter; empty before the first step, changed by every step."""


def optimizer_step(
    training: LocalTraining,
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    moments: Moments,
    step: int,
) -> dict[str, Tensor]:
    """The weights after step number ``step`` (from 1), as torch's ``SGD`` and ``AdamW`` take it."""
    if training.optimizer == "sgd":
        along = dict(gradients)
        if training.momentum > 0:
            along = {n: g + training.momentum * moments[n][0] if n in moments else g for n, g in along.items()}
            moments.update({n: (b, b) for n, b in along.items()})
        return {name: weight - training.lr * along[name] for name, weight in weights.items()}
    new: dict[str, Tensor] = {}
    first, second = _ADAM_BETAS
    for name, weight in weights.items():
        g = gradients[name]
        m, v = moments.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
        m, v = first * m + (1 - first) * g, second * v + (1 - second) * g * g
        moments[name] = (m, v)
        # The tiny term keeps the square root differentiable where a gradient is exactly zero.
        scale = (v / (1 - second**step) + torch.finfo(g.dtype).tiny).sqrt() + ADAM_EPSILON
        new[name] = weight * (1 - training.lr * training.weight_decay) - training.lr * (m / (1 - first**step)) / scale
    return new
