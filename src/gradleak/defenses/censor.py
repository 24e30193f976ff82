"""CENSOR shares a random direction that is orthogonal to the gradient, the best of several by the client's loss.
Public code projects with ‖g‖ where ‖g‖² belongs, so its result is orthogonal only to gradients of norm one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.batch import TrainingData
from gradleak.core.stage import Client, ClientStage, State
from gradleak.core.update import Update
from gradleak.defenses._tensors import require
from gradleak.mechanics.client.trainer import ClientTrainer, vectorized

_TINY = 1e-30
_AT_ONCE = 1 << 24
"""Entries of all draws that are compared in one pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Censor(ClientStage):
    """Shares, tensor by tensor, a random vector orthogonal to the update and of its length.

        d_t = z - (⟨z, u_t⟩ / ⟨u_t, u_t⟩) u_t,  z ~ N(0, I);   released_t = ‖u_t‖ d_t / ‖d_t‖

    Of several draws the one that leaves the lowest loss on the client's own batch after one step is shared.

    Args:
        trials: draws, at least 1.
        lr: length of the step that compares them, for shared gradients; a shared delta is the step.

    Raises:
        SpecError: if an argument is out of range.

    Guarantees:
        Orthogonal in every tensor, whatever the update's norm; lengths are kept, so a norm bound is kept. A tensor of
        one entry has no orthogonal direction and is shared as zero. Fresh draws at each call, from ``rng`` alone.
        To first order the step does not lower the loss: whatever is learned comes from second order and from the choice.
        The surrogate rotates the release orthogonal to the candidate and gives it the candidate's length: exact at the
        truth. The lengths of all tensors are shared exactly. No differential privacy.

    Source: arXiv 2501.15718, by the notes (trials and step of the public code).
    Deviations: the projection is the right one; used in every round (public code: only in the first ten epochs).
    """

    summary: ClassVar[str] = (
        "Shares random directions orthogonal to the update, the best of several by the client's loss."
    )

    trials: int = 20
    lr: float = 1e-4

    def __post_init__(self) -> None:
        require(self.trials >= 1, "censor", "trials", self.trials, "at least 1")
        require(math.isfinite(self.lr) and self.lr > 0, "censor", "lr", self.lr, "positive and finite")

    def apply(self, update: Update, client: Client, rng: torch.Generator) -> tuple[Update, State]:
        together = max(1, min(self.trials, _AT_ONCE // max(update.entries(), 1)))
        best, lowest = update, math.inf
        for first in range(0, self.trials, together):
            count = min(together, self.trials - first)
            drawn = {name: _orthogonal(tensor, count, rng) for name, tensor in update.items()}
            losses = self._losses_after(drawn, client) if self.trials > 1 else [0.0]
            place = losses.index(min(losses))
            if first == 0 or losses[place] < lowest:
                best, lowest = update.map(lambda name, _, drawn=drawn, place=place: drawn[name][place]), losses[place]
        return best, {}

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: _rotated(tensor.flatten(1), observed[name]).view_as(tensor) for name, tensor in simulated.items()}

    def preserves_norm_bound(self) -> bool:
        return True

    def _losses_after(self, steps: Mapping[str, Float[Tensor, "trials ..."]], client: Client) -> list[float]:
        """The loss on the client's own batch after each of the steps."""
        trainer: ClientTrainer = client.trainer
        factor = -self.lr if trainer.training.share == "gradient" else 1.0
        weights = trainer.subject.trainable()
        moved = {name: weights[name].detach() + factor * tensor.to(weights[name]) for name, tensor in steps.items()}
        with torch.no_grad():
            if client.data.mask.all():
                losses = vectorized(lambda weights_after: _loss(trainer, client.data, weights_after), moved)
                if losses is not None:
                    return losses.tolist()
            count = len(next(iter(moved.values())))
            return [float(trainer.loss(client.data, {n: t[i] for n, t in moved.items()})) for i in range(count)]


def _loss(trainer: ClientTrainer, data: TrainingData, weights: Mapping[str, Tensor]) -> Tensor:
    """The mean loss of records without padding."""
    kind = "pixels" if trainer.subject.modality == "image" else "inputs"
    logits = trainer.subject.logits(weights, **{kind: data.inputs})
    return trainer.subject.loss.per_group(logits, data.targets).sum()


def _orthogonal(tensor: Tensor, count: int, rng: torch.Generator) -> Float[Tensor, "count ..."]:
    u = tensor.double().flatten()
    peak = float(u.abs().max())
    if peak == 0.0 or u.numel() == 1:
        return torch.zeros(count, *tensor.shape, dtype=tensor.dtype, device=tensor.device)
    z = torch.randn(count, u.numel(), generator=rng, device=rng.device, dtype=torch.float64).to(u.device)
    unit = u / peak
    unit = unit / unit.norm()
    # Twice, because the first pass leaves a rounding error in proportion to what it removed.
    for _ in range(2):
        z = z - (z @ unit).unsqueeze(1) * unit
    released = z * (u.norm() / z.norm(dim=1, keepdim=True))
    if tensor.dtype != torch.float64:
        # Rounding to the shared format tips the vector; a last shortening keeps its length within the update's.
        rounded = released.to(tensor.dtype)
        slack = 1.0 - torch.finfo(tensor.dtype).eps
        long = rounded.double().norm(dim=1, keepdim=True) > u.norm()
        released = torch.where(long, (released * slack).to(tensor.dtype), rounded)
    return released.view(count, *tensor.shape)


def _rotated(candidate: Tensor, observed: Tensor) -> Tensor:
    """The release without its part along each candidate, at the candidate's length."""
    release = observed.to(candidate).flatten()
    size = candidate.square().sum(1, keepdim=True)
    along = (candidate @ release).unsqueeze(1) / (size + _TINY)
    rest = release - along * candidate
    length = (rest.square().sum(1, keepdim=True) + _TINY).rsqrt()
    return rest * length * (size + _TINY).sqrt()
