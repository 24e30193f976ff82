"""GradDefense spends its noise where the gradient depends most on the input: slices of equal sensitivity, some of
them perturbed. What is not perturbed leaves as it was, and that is what an attacker who knows it relies on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from gradleak.core.batch import Batch, TrainingData
from gradleak.core.stage import Client, ClientStage, State
from gradleak.core.update import Update
from gradleak.defenses._tensors import add_noise, finite_and_not_negative, require
from gradleak.mechanics.client.trainer import ClientTrainer

_TINY = 1e-30
_ROOT_LENGTH = 8
_UNLIKELY = 1e-4
"""Chance that a noisy slice is taken for an exact one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GradDefense(ClientStage):
    """Cuts the update into slices of equal sensitivity and adds Gaussian noise to some of them, drawn at random.

        sensitivity_t = mean over public inputs x of ‖∂⟨g_t, 1⟩/∂x‖,  g_t the gradient of tensor t, x embeddings or pixels
        every entry of tensor t weighs sensitivity_t / n_t; the entries in the model's order are cut into ``bins``
        consecutive slices of equal weight; ``perturbed`` of them, drawn at random, get u + N(0, std²)

    Args:
        std: standard deviation of the noise, absolute, at least 0.
        bins: number of slices, at least 1.
        perturbed: how many of them get noise, from 1 to ``bins``.
        root: number of public inputs, at least 1: uniform pixels, or uniform tokens, the same for everybody.

    Raises:
        SpecError: if an argument is out of range.

    Guarantees:
        Entries outside the drawn slices are shared as they were. Fresh draws at each call, from ``rng`` alone.
        Which slices there are is public. Who knows the stage finds slices that cannot have got noise (``surely_exact``)
        and compares on these alone; where none stands out, it compares everything. No differential privacy.

    Source: GradDefense (INFOCOM 2022), rule and defaults by the notes.
    Deviations: the root inputs are noise instead of public data; a tensor stands for a layer; within a tensor the
        sensitivity is spread evenly. The optional per-example clip is a stage before this one (``dpsgd`` without noise).
        The server's denoising of many clients' updates is not built: it is for accuracy, and an adversary at the server
        sees what comes before it.
    """

    summary: ClassVar[str] = (
        "Adds noise to some of several slices of the update that are equally sensitive to the input."
    )

    std: float = 0.01
    bins: int = 10
    perturbed: int = 5
    root: int = 2
    kept: Mapping[str, Tensor] | None = field(default=None, init=False, repr=False, compare=False)
    """After ``studied``: the entries that are exact."""

    def __post_init__(self) -> None:
        require(finite_and_not_negative(self.std), "grad_defense", "std", self.std, "finite and at least 0")
        require(self.bins >= 1, "grad_defense", "bins", self.bins, "at least 1")
        wanted = f"from 1 to bins={self.bins}"
        require(1 <= self.perturbed <= self.bins, "grad_defense", "perturbed", self.perturbed, wanted)
        require(self.root >= 1, "grad_defense", "root", self.root, "at least 1")

    def apply(self, update: Update, client: Client, rng: torch.Generator) -> tuple[Update, State]:
        place = self._slices(update, client.trainer)
        drawn = torch.zeros(self.bins, dtype=torch.bool)
        drawn[torch.randperm(self.bins, generator=rng, device=rng.device)[: self.perturbed].cpu()] = True

        def perturb(name: str, tensor: Tensor) -> Tensor:
            noisy = drawn[place[name]].view(tensor.shape).to(tensor.device)

            def draw(shape: torch.Size, dtype: torch.dtype) -> Tensor:
                return self.std * torch.randn(shape, generator=rng, device=rng.device, dtype=dtype)

            return torch.where(noisy, add_noise(tensor, draw), tensor)

        return update.map(perturb), {}

    def studied(
        self, released: Mapping[str, Tensor], trainer: ClientTrainer
    ) -> tuple[GradDefense, Mapping[str, Tensor]]:
        place = self._slices(released, trainer)
        exact = surely_exact(released, place, self.bins, self.std)
        if not bool(exact.any()):
            return self, released
        kept = {name: exact[place[name]].view(tensor.shape).to(tensor.device) for name, tensor in released.items()}
        known = replace(self)
        object.__setattr__(known, "kept", kept)
        return known, {name: tensor * kept[name] for name, tensor in released.items()}

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        kept = self.kept
        return simulated if kept is None else {name: tensor * kept[name] for name, tensor in simulated.items()}

    def surrogate_is_identity(self) -> bool:
        return self.kept is None

    def noise_std(self, observed: Tensor, weight: Tensor | None = None) -> float:
        return 0.0 if self.kept is not None else self.std * math.sqrt(self.perturbed / self.bins)

    def _slices(self, update: Mapping[str, Tensor], trainer: ClientTrainer) -> dict[str, Tensor]:
        by_name = sensitivities(trainer, root_data(trainer, self.root))
        return slices({name: (by_name[name], tensor.numel()) for name, tensor in update.items()}, self.bins)


def root_data(trainer: ClientTrainer, count: int) -> TrainingData:
    """Inputs that say nothing of anybody: uniform pixels or tokens and classes, always the same ones."""
    subject, rng = trainer.subject, torch.Generator().manual_seed(0)
    if subject.modality == "image":
        inputs, mask = torch.rand(count, *subject.pixel_shape, generator=rng), torch.ones(count, dtype=torch.bool)
    else:
        shape = (count, min(_ROOT_LENGTH, subject.anatomy.max_positions or _ROOT_LENGTH))
        inputs, mask = torch.randint(subject.anatomy.vocab_size, shape, generator=rng), torch.ones(shape).bool()
    classes = torch.randint(subject.classes, (count,), generator=rng)
    return trainer.prepare(Batch(inputs=inputs, mask=mask, labels=classes if subject.loss.labels_records else inputs))


def sensitivities(trainer: ClientTrainer, data: TrainingData) -> dict[str, float]:
    """``‖∂⟨g_t, 1⟩/∂x‖`` of every trained tensor, averaged over records; g_t is the gradient of one record's loss."""
    subject = trainer.subject
    totals = dict.fromkeys(trainer.names(), 0.0)
    with torch.enable_grad():
        for place in range(data.size):
            leaves = {name: subject.trainable()[name].detach().requires_grad_() for name in totals}
            inputs, targets, mask = (tensor[place : place + 1] for tensor in (data.inputs, data.targets, data.mask))
            seen = inputs if inputs.is_floating_point() else subject.embed(inputs, leaves)
            shift = torch.zeros_like(seen, requires_grad=True)
            loss = trainer.loss(replace(data, inputs=seen + shift, targets=targets, mask=mask), leaves)
            gradients = torch.autograd.grad(
                loss, list(leaves.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
            attached = [name for name, gradient in zip(leaves, gradients, strict=True) if gradient.requires_grad]
            sums = torch.stack([gradient.sum() for gradient in gradients if gradient.requires_grad])
            # All tensors in one vectorized backward pass: a loop over them costs three times as much.
            (slopes,) = torch.autograd.grad(
                sums, shift, torch.eye(len(attached)).to(sums), is_grads_batched=True, materialize_grads=True
            )
            for name, slope in zip(attached, slopes, strict=True):
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
    places, before = {}, 0.0
    for name, (weight, count) in tensors.items():
        middle = before + weight * (torch.arange(count, dtype=torch.float64) + 0.5) / max(count, 1)
        places[name] = (middle * bins / total).long().clamp(max=bins - 1)
        before += weight
    return places


def surely_exact(
    released: Mapping[str, Tensor], place: Mapping[str, Tensor], bins: int, std: float
) -> Bool[Tensor, " bins"]:
    """Slices that cannot have got noise of this deviation, because their rows follow too well from the other rows.

    Of every matrix, R the m rows that lie in slice k, V the row space of the rows with no entry in it (at most half of the
    n columns, the leading directions). The noise of R would leave ‖R − R V Vᵀ‖² / std² ~ χ² with m (n − dim V) degrees
    of freedom, and whatever it was added to can only lengthen that. A slice is exact if the sum over all matrices is below
    the χ² law's quantile at 1e-4. Gradients of layers have few directions, so exact rows leave little.
    """
    lengths, freedom = (torch.zeros(bins, dtype=torch.float64) for _ in range(2))
    for name, tensor in released.items():
        if tensor.ndim < 2:
            continue
        matrix, where = tensor.detach().double().flatten(1).cpu(), place[name].view(len(tensor), -1)
        for k in where.unique().tolist():
            own, other = (where == k).all(1), ~(where == k).any(1)
            if not bool(own.any()):
                continue
            space = torch.linalg.svd(matrix[other], full_matrices=False).Vh[: matrix.shape[1] // 2]
            left = matrix[own] - matrix[own] @ space.T @ space
            lengths[k] += left.square().sum()
            freedom[k] += left.shape[0] * (left.shape[1] - len(space))
    surprise = torch.special.gammainc(freedom / 2, lengths / (2 * max(std, _TINY) ** 2))
    return (freedom > 0) & (surprise < _UNLIKELY)
