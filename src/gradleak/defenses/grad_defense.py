"""Why: GradDefense spends its noise where the gradient depends most on the input: slices of equal sensitivity, some of
them perturbed. What is not perturbed leaves as it was, and that is what an attacker who knows it relies on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from gradleak.core.batch import TrainingData
from gradleak.core.stage import Client, ClientStage, State
from gradleak.core.update import Update
from gradleak.defenses._tensors import add_noise, finite_and_not_negative, require
from gradleak.mechanics.training import ClientTrainer

_SAMPLE = 1 << 16
_TINY, _AT_ZERO = 1e-30, 1e-6
_NARROW = 1e-4
"""Width of the robust error in units of the noise: below what candidates differ by, above the rounding of a replay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GradDefense(ClientStage):
    """Cuts the update into slices of equal sensitivity and adds Gaussian noise to some of them, drawn at random.

        sensitivity_t = mean over records of ‖∂⟨g_t, 1⟩/∂x‖,  g_t the gradient of tensor t, x embeddings or pixels
        every entry of tensor t weighs sensitivity_t / n_t; the entries in the model's order are cut into ``bins``
        consecutive slices of equal weight; ``perturbed`` of them, drawn at random, get u + N(0, std²)

    Args:
        std: standard deviation of the noise, absolute, at least 0.
        bins: number of slices, at least 1.
        perturbed: how many of them get noise, from 1 to ``bins``.

    Raises:
        SpecError: if an argument is out of range.

    Guarantees:
        Entries outside the drawn slices are shared as they were. Fresh draws at each call, from ``rng`` alone.
        The surrogate makes squared error grow like a logarithm, entry by entry, as the likelihood of heavy-tailed noise
        does: the noise on one part of the entries, however large, then hardly outvotes the exact other part. That ranks
        candidates; an optimizer that starts far away has less to follow than with the plain error.
        No differential privacy.

    Source: GradDefense (INFOCOM 2022), rule and defaults by the notes.
    Deviations: sensitivities are those of the client's own batch (the paper: of a public root set); a tensor stands for
        a layer; within a tensor the sensitivity is spread evenly. The optional per-example clip is a stage
        before this one (``dpsgd`` without noise). The server's denoising of many clients' updates is not built: it comes
        after what an adversary at the server sees.
    """

    summary: ClassVar[str] = (
        "Adds noise to some of several slices of the update that are equally sensitive to the input."
    )

    std: float = 0.01
    bins: int = 10
    perturbed: int = 5

    def __post_init__(self) -> None:
        require(finite_and_not_negative(self.std), "grad_defense", "std", self.std, "finite and at least 0")
        require(self.bins >= 1, "grad_defense", "bins", self.bins, "at least 1")
        wanted = f"from 1 to bins={self.bins}"
        require(1 <= self.perturbed <= self.bins, "grad_defense", "perturbed", self.perturbed, wanted)

    def apply(self, update: Update, client: Client, rng: torch.Generator) -> tuple[Update, State]:
        found = sensitivities(client.trainer, client.data)
        place = slices({name: (found[name], tensor.numel()) for name, tensor in update.items()}, self.bins)
        drawn = torch.zeros(self.bins, dtype=torch.bool)
        drawn[torch.randperm(self.bins, generator=rng, device=rng.device)[: self.perturbed].cpu()] = True

        def perturb(name: str, tensor: Tensor) -> Tensor:
            noisy = drawn[place[name]].view(tensor.shape).to(tensor.device)

            def draw(shape: torch.Size, dtype: torch.dtype) -> Tensor:
                return self.std * torch.randn(shape, generator=rng, device=rng.device, dtype=dtype)

            return torch.where(noisy, add_noise(tensor, draw), tensor)

        return update.map(perturb), {}

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        width = min(_NARROW * self.std, _small_entry(observed))
        if width == 0.0:
            return simulated
        return {name: _robust(tensor, observed[name], width) for name, tensor in simulated.items()}

    def noise_std(self, observed: Tensor, weight: Tensor | None = None) -> float:
        return self.std * math.sqrt(self.perturbed / self.bins)


def sensitivities(trainer: ClientTrainer, data: TrainingData) -> dict[str, float]:
    """``‖∂⟨g_t, 1⟩/∂x‖`` of every trained tensor, averaged over records; g_t is the gradient of one record's loss."""
    subject = trainer.subject
    totals = dict.fromkeys(trainer.names(), 0.0)
    with torch.enable_grad():
        for place in range(data.size):
            leaves = {name: subject.trainable()[name].detach().requires_grad_() for name in totals}
            inputs, targets, mask = (each[place : place + 1] for each in (data.inputs, data.targets, data.mask))
            seen = inputs if inputs.is_floating_point() else subject.embed(inputs, leaves)
            shift = torch.zeros_like(seen, requires_grad=True)
            loss = trainer.loss(replace(data, inputs=seen + shift, targets=targets, mask=mask), leaves)
            gradients = torch.autograd.grad(
                loss, list(leaves.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
            for name, gradient in zip(leaves, gradients, strict=True):
                if gradient.requires_grad:
                    (slope,) = torch.autograd.grad(gradient.sum(), shift, retain_graph=True, materialize_grads=True)
                    totals[name] += float(slope.norm()) / data.size
    return totals


def slices(tensors: Mapping[str, tuple[float, int]], bins: int) -> dict[str, Tensor]:
    """The slice of every entry, flat, by tensor: the entries in order, cut where the weight so far passes k/bins.

    Args:
        tensors: sensitivity and number of entries by name; if all sensitivities are zero every entry weighs the same.
    """
    total = sum(weight for weight, _ in tensors.values())
    if total <= 0.0:
        return slices({name: (float(count), count) for name, (_, count) in tensors.items()}, bins)
    found, before = {}, 0.0
    for name, (weight, count) in tensors.items():
        middle = before + weight * (torch.arange(count, dtype=torch.float64) + 0.5) / max(count, 1)
        found[name] = (middle * bins / total).long().clamp(max=bins - 1)
        before += weight
    return found


def _robust(simulated: Tensor, observed: Tensor, width: float) -> Tensor:
    """The release plus ρ(r), ρ² = width²·log(1 + r²/width²) of the residual r: |ρ| ≤ |r|, equal to first order at 0."""
    residual = simulated - observed.to(simulated)
    # The tiny term keeps the slope at zero finite.
    ratio = (residual / width).square() + _AT_ZERO
    return observed.to(simulated) + residual * (torch.log1p(ratio) / ratio).sqrt()


def _small_entry(observed: Mapping[str, Tensor]) -> float:
    """The lowest decile of the nonzero magnitudes, read off an even sample of each tensor: no larger than a clean entry."""
    parts = [tensor.flatten()[:: max(1, tensor.numel() // _SAMPLE)] for tensor in observed.values()]
    values = torch.cat([part.detach().abs().double() for part in parts])
    values = values[values > _TINY]
    return float(values.kthvalue(max(1, values.numel() // 10)).values) if values.numel() else 0.0
