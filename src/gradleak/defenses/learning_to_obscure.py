"""Learning to Obscure trains on synthetic images that are far from the private ones and teach nearly the same.

Re-derived: of the paper only the abstract was at hand, and no code is public.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.batch import TrainingData
from gradleak.core.errors import SpecError
from gradleak.core.stage import Client, DataStage
from gradleak.defenses._obscuring import gradient_at, own_weights, require_images, shuffled
from gradleak.defenses._tensors import finite_and_not_negative, require
from gradleak.mechanics.client.trainer import ClientTrainer

_TINY = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningToObscure(DataStage):
    """Trains on X~, learned from noise so that a step on it does what a step on X does, and kept away from X.

        X~ starts uniform on [0, 1] and takes Adam steps in that box on
        E_θ [ V(X~; θ) ] + penalty · mean_i max(0, distance − rms(x~_i − x_i)),   with match
            gradient:  V = mean over tensors l of 1 − cos(∇_l L(θ; X~, y), ∇_l L(θ; X, y))
            step:      V = L(θ − eta ∇L(θ; X~, y); X, y), the bilevel form
        θ: the model's own tensors, each with its entries in random order: another model of the same spread

    Args:
        match: what makes X~ as good as X.
        distance: in units of the pixel range, in [0, 1]; 0.3 is a PSNR of 10.5 dB.
        penalty: its weight, at least 0.
        steps: Adam steps, at least 1, each at another θ; lr: their size, positive.
        eta: of the inner step, positive.
        group: records that take each step together, at least 1.

    Raises:
        SpecError: if an argument is out of range; when run, ``ModelError`` unless the model classifies images.

    Guarantees:
        All draws are from ``rng``. The private images enter through gradients and distances only. An attack that matches
        the update finds X~. No differential privacy: X~ is learned from X, so whose it is can be read off it.

    Source: re-derived after "Learning to Obscure Data" (arXiv 2206.00769), of which the notes had the abstract; both
        objectives are the notes' reconstruction, its hyper-parameters are ours.
    Deviations: unknown. X~ is learned anew for every release from its batch, where the original works once and offline;
        give a whole data set as one batch to do that.
    """

    summary: ClassVar[str] = (
        "Trains on synthetic images far from the private ones that teach nearly the same (re-derived)."
    )

    match: Literal["gradient", "step"] = "gradient"
    distance: float = 0.3
    penalty: float = 10.0
    steps: int = 100
    lr: float = 0.05
    eta: float = 0.1
    group: int = 64

    def __post_init__(self) -> None:
        name = "learning_to_obscure"
        if self.match not in ("gradient", "step"):
            raise SpecError(f"{name}: match={self.match} is not known. Choose gradient or step.")
        require(0.0 <= self.distance <= 1.0, name, "distance", self.distance, "in [0, 1]")
        require(finite_and_not_negative(self.penalty), name, "penalty", self.penalty, "finite and at least 0")
        for key, size in (("lr", self.lr), ("eta", self.eta)):
            require(0.0 < size < math.inf, name, key, size, "positive and finite")
        for key, count in (("steps", self.steps), ("group", self.group)):
            require(count >= 1, name, key, count, "at least 1")

    def apply(self, client: Client, rng: torch.Generator) -> TrainingData:
        require_images(client, "learning_to_obscure")
        data, weights = client.data, own_weights(client.trainer)
        noise = torch.rand(data.inputs.shape, generator=rng, device=rng.device).to(data.inputs)
        obscured = noise.requires_grad_()
        optimizer = torch.optim.Adam([obscured], lr=self.lr)
        for _ in range(self.steps):
            places = torch.randperm(data.size, generator=rng, device=rng.device)[: self.group]
            private = TrainingData(inputs=data.inputs[places], targets=data.targets[places], mask=data.mask[places])
            theta = shuffled(weights, rng)
            with torch.enable_grad():
                trial = replace(private, inputs=obscured[places])
                near = (self.distance - distances(trial.inputs, private.inputs)).clamp_min(0.0).mean()
                value = self._value(client.trainer, theta, trial, private) + self.penalty * near
            (obscured.grad,) = torch.autograd.grad(value, obscured)
            optimizer.step()
            with torch.no_grad():
                obscured.clamp_(0.0, 1.0)
        return replace(data, inputs=obscured.detach())

    def _value(
        self, trainer: ClientTrainer, theta: Mapping[str, Tensor], trial: TrainingData, private: TrainingData
    ) -> Tensor:
        """V(X~; θ)."""
        taught = gradient_at(trainer, theta, trial, differentiable=True)
        if self.match == "step":
            return trainer.loss(private, {name: theta[name] - self.eta * slope for name, slope in taught.items()})
        return disagreement(taught, gradient_at(trainer, theta, private, differentiable=False))


def distances(
    images: Float[Tensor, "batch channels height width"], others: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, " batch"]:
    """Root mean square difference of the pixels; the tiny term keeps its slope finite at equality."""
    return ((images - others).square().flatten(1).mean(1) + _TINY).sqrt()


def disagreement(taught: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Mean over tensors of one minus the cosine; a tensor that gets no gradient from the private images does not count."""
    counted = {name: g.flatten() for name, g in wanted.items() if bool((g != 0).any())}
    parts = [1.0 - torch.cosine_similarity(taught[name].flatten(), g, dim=0, eps=_TINY) for name, g in counted.items()]
    return torch.stack(parts).mean()
