"""Digits, small networks and one matching attack that the studies of image defenses share. Prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gradleak.core.batch import Batch, TrainingData
from gradleak.core.loss import CLASSIFICATION
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.defenses._obscuring import gradient_at, own_weights
from gradleak.harness.utility.tasks import make_task
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject
from gradleak.models.anatomy import Anatomy

DIGITS: Any = load_digits()
IMAGES, LABELS = torch.tensor(DIGITS.images).unsqueeze(1) / 16, torch.tensor(DIGITS.target)
LARGE = nn.functional.interpolate(IMAGES, size=16, mode="bilinear")
PUBLIC = 900
"""The first so many digits are private, the others public."""


class Network(nn.Module):
    """A small convolutional classifier of gray images, called like a vision transformer."""

    main_input_name = "pixel_values"

    def __init__(self, body: nn.Module, features: int, size: int, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(features, 10)
        self.config = SimpleNamespace(image_size=size, num_channels=1)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(draw(weight))

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.body(pixel_values).flatten(1)))


def trainer_of(network: nn.Module) -> ClientTrainer:
    nothing = Anatomy(
        kind="vision", token_embedding=None, position_embedding=None, position_kind="none", blocks=(), head=None,
        tied=False, per_token=False, hidden_size=0, vocab_size=0, max_positions=None,
    )  # fmt: skip
    subject = Subject(
        name="network", module=network.eval(), anatomy=nothing, tokenizer=None, loss=CLASSIFICATION, classes=10
    )
    return ClientTrainer(subject=subject, training=LocalTraining())


def lenet(seed: int) -> ClientTrainer:
    """The LeNet of the gradient matching literature, weights uniform on ±1/2."""
    rng = derive(seed, "lenet")
    body = nn.Sequential(
        nn.Conv2d(1, 12, 5, 2, 2), nn.Sigmoid(), nn.Conv2d(12, 12, 5, 2, 2), nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, 1, 2), nn.Sigmoid(),
    )  # fmt: skip
    return trainer_of(Network(body, 192, 16, lambda w: torch.rand(w.shape, generator=rng) - 0.5))


def convolutions(seed: int) -> ClientTrainer:
    """Two convolutions with tanh, usual initialization."""
    rng = derive(seed, "convolutions")

    def draw(w: Tensor) -> Tensor:
        return torch.randn(w.shape, generator=rng) / w[0].numel() ** 0.5 if w.ndim > 1 else torch.zeros(w.shape)

    body = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), nn.Tanh(), nn.Conv2d(16, 32, 3, 2, 1), nn.Tanh())
    return trainer_of(Network(body, 512, 8, draw))


def transformer(seed: int) -> ClientTrainer:
    """The vision transformer of the utility task ``digits``, in float64."""
    subject = make_task("digits", seed).subject
    subject.module.to(torch.get_default_dtype())
    return ClientTrainer(subject=subject, training=LocalTraining())


def client_of(trainer: ClientTrainer, images: Tensor, labels: Tensor) -> Client:
    batch = Batch(inputs=images, mask=torch.ones(len(images), dtype=torch.bool), labels=labels)
    return Client(batch=batch, data=trainer.prepare(batch), trainer=trainer)


def psnr(found: Tensor, truth: Tensor) -> float:
    return -10 * float(torch.log10((found.clamp(0, 1) - truth).square().mean()))


def gradient(trainer: ClientTrainer, data: TrainingData) -> dict[str, Tensor]:
    return gradient_at(trainer, own_weights(trainer), data, differentiable=False)


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def matched(
    trainer: ClientTrainer,
    data: TrainingData,
    wanted: Mapping[str, Tensor],
    seed: int,
    change: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[Tensor, float]:
    """The image whose gradient, after ``change``, is nearest to ``wanted``; and the relative squared distance left."""
    weights = own_weights(trainer)
    x = torch.rand(data.inputs.shape, generator=derive(seed, "start")).requires_grad_()
    size = float(flat(wanted).square().sum())
    optimizer = torch.optim.LBFGS(
        [x], lr=1, max_iter=300, history_size=100, tolerance_grad=1e-14, tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def distance() -> Tensor:
        optimizer.zero_grad()
        found = gradient_at(trainer, weights, replace(data, inputs=change(x)), differentiable=True)
        value = sum(((found[n] - g).square().sum() for n, g in wanted.items()), torch.zeros(())) / size
        value.backward()
        return value

    optimizer.step(distance)  # pyright: ignore[reportArgumentType]
    return x.detach(), float(distance().detach())
