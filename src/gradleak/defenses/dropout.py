"""Dropout was made against overfitting; its masks are draws that an attacker does not know, which hides a little.
Must not touch the module that it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradleak.core.errors import ModelError
from gradleak.core.stage import ModelStage
from gradleak.defenses._tensors import require
from gradleak.models import Subject
from gradleak.models.running.attention import sample_inputs
from gradleak.models.running.noise_inputs import Noisy, copied_structure


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropout(ModelStage):
    """Turns the model's own dropout layers on, at one rate, with masks that are drawn anew in every step.

        h' = m ∘ h / (1 − rate),   m_i ~ Bernoulli(1 − rate) for every entry of every record

    Args:
        rate: share of entries set to zero, in (0, 1).

    Raises:
        SpecError: for an argument out of range.
        ModelError: if the model has no dropout layer.

    Guarantees:
        None of privacy. The masks come from the client's generator; at their mean the model is as it was, which is how
        accuracy is measured. An informed attacker searches every mask along with the input (``dia``).

    Source: the notes on DIA (AAAI 2023): rates of 0.1 to 0.25 in vision transformers.
    Deviations: layers of the module tree only; dropout of attention probabilities is no layer of current transformers.
    """

    summary: ClassVar[str] = "Turns the model's dropout layers on; an informed attacker searches the masks."

    rate: float = 0.1

    def __post_init__(self) -> None:
        require(0.0 < self.rate < 1.0, "dropout", "rate", self.rate, "in (0, 1)")

    def change(self, subject: Subject) -> Subject:
        paths = running_dropout(subject)
        if not paths:
            raise ModelError(f"dropout: {subject.name} has no dropout layer to turn on.")
        module = copied_structure(subject.module)
        like = next(subject.module.parameters())
        for path in paths:
            module.set_submodule(path, MaskedDropout(self.rate).to(like))
        return replace(subject, module=module.eval())


def running_dropout(subject: Subject) -> tuple[str, ...]:
    """Paths of the dropout layers that take part in a forward pass; some models keep one only for its rate."""
    paths: list[str] = []

    def listener(path: str) -> Callable[[nn.Module, Any], None]:
        return lambda layer, args: paths.append(path)

    layers = [(path, layer) for path, layer in subject.module.named_modules() if isinstance(layer, nn.Dropout)]
    handles = [layer.register_forward_pre_hook(listener(path)) for path, layer in layers]
    try:
        with torch.no_grad():
            sample = sample_inputs(subject.module)
            image = subject.modality == "image"
            _ = subject.logits(pixels=sample) if image else subject.logits(embeddings=sample)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(dict.fromkeys(paths))


class MaskedDropout(Noisy):
    """Dropout whose mask goes in from outside; the identity where none is given."""

    def __init__(self, rate: float) -> None:
        super().__init__(1.0 - rate)
        self.kept = 1.0 - rate

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.noise / self.kept)

    def noise_shape(self, x: Tensor) -> tuple[int, ...]:
        return tuple(x.shape)

    def draw(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        return (torch.rand(shape, generator=rng) < self.kept).to(self.noise.dtype)

    def relaxed(self, latent: Tensor) -> Tensor:
        return torch.sigmoid(latent + math.log(self.kept / (1.0 - self.kept)))
