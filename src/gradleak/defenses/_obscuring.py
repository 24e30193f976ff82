"""Defenses that train on changed images compare gradients at weights of their own choosing, and take the same kind
of model. Must not know any of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gradleak.core.batch import TrainingData
from gradleak.core.errors import ModelError
from gradleak.core.stage import Client
from gradleak.mechanics.client.trainer import ClientTrainer


def require_images(client: Client, name: str) -> None:
    """Raises ``ModelError`` unless the client classifies images: tokens cannot be moved a little."""
    subject = client.trainer.subject
    if subject.modality != "image" or not subject.loss.classifies_records:
        raise ModelError(f"{name} changes the pixels of images; {subject.name} does not classify images.")


def gradient_at(
    trainer: ClientTrainer, weights: Mapping[str, Tensor], data: TrainingData, *, differentiable: bool
) -> dict[str, Tensor]:
    """The gradient of the mean loss at ``weights``, attached to ``data`` if ``differentiable``; zeros where none flows."""
    with torch.enable_grad():
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        gradients = torch.autograd.grad(
            trainer.loss(data, leaves),
            list(leaves.values()),
            create_graph=differentiable,
            allow_unused=True,
            materialize_grads=True,
        )
    return dict(zip(leaves, gradients, strict=True))


def own_weights(trainer: ClientTrainer) -> dict[str, Tensor]:
    """The trained parameters as they are, detached."""
    return {name: weight.detach() for name, weight in trainer.subject.trainable().items()}


def shuffled(weights: Mapping[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
    """Another model with the same entries in each tensor, in random order."""

    def shuffle(tensor: Tensor) -> Tensor:
        order = torch.randperm(tensor.numel(), generator=rng, device=rng.device).to(tensor.device)
        return tensor.flatten()[order].view(tensor.shape)

    return {name: shuffle(tensor) for name, tensor in weights.items()}
