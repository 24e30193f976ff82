"""OUTPOST perturbs early steps more than late ones, and only where the Fisher information is high. Public code
perturbs a copy and shares the original, and seeds its generator anew at every call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradleak.core.stage import Client, ClientStage, State
from gradleak.core.update import Update
from gradleak.defenses._tensors import keep_largest, kept_count, require, working_dtype
from gradleak.mechanics.client.trainer import ClientTrainer

_TINY = 1e-30


@dataclass(frozen=True, kw_only=True, slots=True)
class Outpost(ClientStage):
    """Prunes each tensor and adds noise where the empirical Fisher information is high; less and less often.

        with probability 1 / (1 + β·i), i the releases of this client before this one:
            u_t ← the largest ⌈(1 - prune)·n⌉ entries of u_t, else 0
            u_t ← u_t + N(0, s_t²) on the entries with the top share φ of F_t,   s_t = λ·min(Var(θ_t), 1)
        else u as it is.   F_t = mean over examples of the squared example gradient, θ_t the weights.

    Args:
        beta: β, at least 0: how fast the perturbation becomes rare.
        phi: φ, the share of entries that get noise, in [0, 1].
        prune: the share of entries set to zero, in [0, 1).
        noise: λ, at least 0.

    Raises:
        SpecError: if an argument is out of range.

    Guarantees:
        The first release is always perturbed. Fresh draws at each call, from ``rng`` alone; nothing is seeded here.
        A released zero was neither large nor of high Fisher information, which for one record is the squared gradient: the
        release names the places of its largest entries. The surrogate prunes the candidate by its own sizes, and counts
        entries that are large where the release is zero. No differential privacy.

    Source: OUTPOST (INFOCOM 2023), rule and defaults as the public code states them, by the notes.
    Deviations: it perturbs (the public code returns its input); i counts releases of the client, not local steps.
    """

    summary: ClassVar[str] = (
        "Prunes and adds noise where the Fisher information is high, more rarely as training goes on."
    )

    beta: float = 0.125
    phi: float = 0.4
    prune: float = 0.8
    noise: float = 0.8

    def __post_init__(self) -> None:
        for key, value in (("beta", self.beta), ("noise", self.noise)):
            require(math.isfinite(value) and value >= 0, "outpost", key, value, "finite and at least 0")
        require(0.0 <= self.phi <= 1.0, "outpost", "phi", self.phi, "in [0, 1]")
        require(0.0 <= self.prune < 1.0, "outpost", "prune", self.prune, "in [0, 1)")

    def apply(self, update: Update, client: Client, rng: torch.Generator) -> tuple[Update, State]:
        chance = 1.0 / (1.0 + self.beta * client.round)
        if float(torch.rand((), generator=rng, device=rng.device)) >= chance:
            return update, {}
        trainer: ClientTrainer = client.trainer
        weights = {name: value.detach() for name, value in trainer.subject.trainable().items()}
        fisher = {name: g.square().mean(0) for name, g in trainer.example_gradients(weights, client.data).items()}

        def perturb(name: str, tensor: Tensor) -> Tensor:
            wide = tensor.to(working_dtype(tensor)).flatten()
            large = keep_largest(wide.abs(), kept_count(wide.numel(), self.prune))
            noisy = keep_largest(fisher[name].flatten(), round(self.phi * wide.numel()))
            std = self._std(weights[name])
            draw = std * torch.randn(wide.shape, generator=rng, device=rng.device, dtype=wide.dtype)
            return (wide * large + draw.to(wide.device) * noisy).view(tensor.shape).to(tensor.dtype)

        return update.map(perturb), {}

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: self._expected(tensor, observed[name]) for name, tensor in simulated.items()}

    def noise_std(self, observed: Tensor, weight: Tensor | None = None) -> float | None:
        return None if weight is None else self._std(weight) * math.sqrt(self.phi)

    def _std(self, weight: Tensor) -> float:
        return self.noise * min(float(weight.detach().double().var(correction=0)), 1.0)

    def _expected(self, candidate: Tensor, observed: Tensor) -> Tensor:
        """The candidate's own pruning where the release is not zero; elsewhere what of it should have been noisy there."""
        shown, flat = observed.flatten() != 0, candidate.flatten(1)
        entries, count = flat.shape[1], int(shown.sum())
        kept = kept_count(entries, self.prune)
        if count > kept + round(self.phi * entries):
            return candidate
        sizes = flat.detach().abs()
        unit = observed.flatten()[shown].to(flat).square().mean().sqrt() if bool(shown.any()) else flat.new_zeros(())
        excess = (1.0 - _threshold(sizes, count) / sizes.clamp_min(_TINY)).clamp_min(0.0)
        inside = flat * (sizes >= _threshold(sizes, kept)) * shown
        return (inside + flat / sizes.clamp_min(_TINY) * excess * unit * ~shown).view_as(candidate)


def _threshold(sizes: Tensor, count: int) -> Tensor:
    """The ``count``-th largest size of each row."""
    if count == 0:
        return sizes.amax(1, keepdim=True)
    return sizes.kthvalue(sizes.shape[1] - count + 1, dim=1, keepdim=True).values
