"""Refiner trains on images that look like noise and yet have nearly the private gradient, where it counts.

Re-derived: of the paper only the abstract was at hand, and no code is public.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from gradleak.core.batch import TrainingData
from gradleak.core.errors import DataError
from gradleak.core.rng import derive
from gradleak.core.stage import Client, DataStage
from gradleak.defenses._obscuring import gradient_at, own_weights, require_images
from gradleak.defenses._tensors import finite_and_not_negative, require

SYNTHETIC = "synthetic"
_LESSONS, _LESSON_SIZE, _LESSON_LR, _CHANNELS = 400, 64, 5e-3, 16
_FIELDS = 512
_TINY = 1e-30


@dataclass(frozen=True, kw_only=True, slots=True)
class Refiner(DataStage):
    """Trains on x* in the place of x: close to x in the gradient of the key parameters, far from any natural image.

        x* starts at (1 − a)·x + a·n,  n ~ U(0, 1) per pixel, and takes Adam steps in the box [0, 1] on
        √( Σ_l τ^l Σ_i w_li (g_li(x*) − g_li(x))² / Σ_l τ^l Σ_i w_li g_li(x)² )  −  beta · D(x*)
        w_li = |θ_li g_li(x)|: which entries of tensor l matter to the model; g the batch's gradient
        D: an evaluation network, trained on public images z to read r off (1 − r)·z + r·n

    Args:
        beta: weight of looking like noise, at least 0; with 0 the steps lead back to x.
        blend: a, from 0 to 1.
        steps: Adam steps, at least 1; each is a double backward pass.
        lr: their size, positive, in units of the pixel range.
        depth: τ, in (0, 1]: how much less each later tensor counts.
        public: a safetensors file with a tensor ``images`` [n, channels, height, width] in [0, 1], which D learns
            from; ``synthetic`` for random fields with the spectrum of photographs.

    Raises:
        SpecError: if an argument is out of range; when run, ``ModelError`` unless the model classifies images and
            ``DataError`` if the file cannot serve.

    Guarantees:
        The start is drawn from ``rng``; D is a function of ``public`` and the image shape alone, so everybody can have it.
        An attack that matches the update finds x*. No differential privacy: x* is a function of x, and its gradient is
        close to that of x on purpose, which is what identification reads.

    Source: re-derived after Refiner (arXiv 2212.02042), of which the notes had the abstract; objective and defaults
        are those of the notes' pilot, the square root and its normalization are ours.
    Deviations: unknown.
    """

    summary: ClassVar[str] = (
        "Trains on images that look like noise and keep the gradient of key parameters (re-derived)."
    )

    beta: float = 1.0
    blend: float = 0.5
    steps: int = 100
    lr: float = 0.02
    depth: float = 0.9
    public: str = SYNTHETIC

    def __post_init__(self) -> None:
        require(finite_and_not_negative(self.beta), "refiner", "beta", self.beta, "finite and at least 0")
        require(0.0 <= self.blend <= 1.0, "refiner", "blend", self.blend, "in [0, 1]")
        require(self.steps >= 1, "refiner", "steps", self.steps, "at least 1")
        require(0.0 < self.lr < math.inf, "refiner", "lr", self.lr, "positive and finite")
        require(0.0 < self.depth <= 1.0, "refiner", "depth", self.depth, "in (0, 1]")

    def apply(self, client: Client, rng: torch.Generator) -> TrainingData:
        require_images(client, "refiner")
        data, weights = client.data, own_weights(client.trainer)
        network = evaluation_network(tuple(data.inputs.shape[1:]), self.public)
        wanted = gradient_at(client.trainer, weights, data, differentiable=False)
        keys = key_weights(weights, wanted, self.depth)
        noise = torch.rand(data.inputs.shape, generator=rng, device=rng.device).to(data.inputs)
        refined = torch.lerp(data.inputs, noise, self.blend).detach().requires_grad_()
        optimizer = torch.optim.Adam([refined], lr=self.lr)
        for _ in range(self.steps):
            gradient = gradient_at(client.trainer, weights, replace(data, inputs=refined), differentiable=True)
            with torch.enable_grad():
                value = mismatch(gradient, wanted, keys) - self.beta * noisiness(network, refined).mean()
            (refined.grad,) = torch.autograd.grad(value, refined)
            optimizer.step()
            with torch.no_grad():
                refined.clamp_(0.0, 1.0)
        return replace(data, inputs=refined.detach())


def key_weights(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], depth: float) -> dict[str, Tensor]:
    """τ^l |θ g| of every entry: the first-order change of the loss if the entry were zero, less for later tensors."""
    return {name: depth**place * (weights[name] * g).abs() for place, (name, g) in enumerate(wanted.items())}


def mismatch(gradient: Mapping[str, Tensor], wanted: Mapping[str, Tensor], keys: Mapping[str, Tensor]) -> Tensor:
    """Weighted relative error of the gradient: 0 if equal, 1 if there is none."""
    error = torch.stack([(keys[n] * (gradient[n] - g).square()).sum() for n, g in wanted.items()]).sum()
    size = sum(float((keys[n] * g.square()).sum()) for n, g in wanted.items())
    # The tiny term keeps the slope of the root finite at equality.
    return (error / max(size, _TINY) + 1e-12).sqrt()


def noisiness(
    network: Mapping[str, Tensor], images: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, " batch"]:
    """What the evaluation network takes for the share of noise in each image, in [0, 1]."""
    w = {name: weight.to(images) for name, weight in network.items()}
    x = functional.silu(functional.conv2d(images - 0.5, w["first"], w["first_bias"], padding=1))
    x = functional.silu(functional.conv2d(x, w["second"], w["second_bias"], padding=1))
    # The spread of the features tells more about noise than their mean.
    pooled = torch.cat([x.mean((2, 3)), x.var((2, 3), correction=0)], 1)
    hidden = functional.silu(pooled @ w["third"] + w["third_bias"])
    return torch.sigmoid(hidden @ w["last"] + w["last_bias"]).squeeze(1)


@lru_cache(maxsize=8)
def evaluation_network(shape: tuple[int, int, int], public: str) -> Mapping[str, Tensor]:
    """D for images of that shape: 400 steps of Adam on blends of public images with noise, from fixed draws."""
    rng = derive(0, "refiner", shape, public)
    images = _synthetic(shape, rng) if public == SYNTHETIC else read_public(Path(public), shape)
    network = _fresh(shape[0], rng)
    optimizer = torch.optim.Adam(list(network.values()), lr=_LESSON_LR)
    with torch.enable_grad():
        for _ in range(_LESSONS):
            blends, shares = blended(images, _LESSON_SIZE, rng)
            loss = (noisiness(network, blends) - shares).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: weight.detach() for name, weight in network.items()}


def blended(
    images: Float[Tensor, "images channels height width"], count: int, rng: torch.Generator
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, " batch"]]:
    """Random images blended with uniform noise, and the shares of the noise."""
    chosen = images[torch.randint(len(images), (count,), generator=rng)]
    shares = torch.rand(count, generator=rng)
    noise = torch.rand(chosen.shape, generator=rng)
    return torch.lerp(chosen, noise, shares.view(-1, 1, 1, 1)), shares


def read_public(path: Path, shape: tuple[int, int, int]) -> Float[Tensor, "images channels height width"]:
    """The public images of a file.

    Raises:
        DataError: if there is no such file, or it holds no images of that shape.
    """
    if not path.is_file():
        raise DataError(f"refiner: there is no file {path} with public images. Write public=synthetic to do without.")
    images = load_file(path).get("images")
    if images is None or images.ndim != 4 or tuple(images.shape[1:]) != shape:
        given = "no tensor 'images'" if images is None else f"images of shape {tuple(images.shape[1:])}"
        raise DataError(f"refiner: {path} holds {given}, and the model takes {shape}. Save images [n, {shape}].")
    return images.float()


def _synthetic(shape: tuple[int, int, int], rng: torch.Generator) -> Float[Tensor, "images channels height width"]:
    """Gaussian fields with amplitudes 1/f, stretched to [0, 1]."""
    rows = torch.fft.fftfreq(shape[1]).view(-1, 1)
    columns = torch.fft.rfftfreq(shape[2]).view(1, -1)
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1 / max(shape[1:]))
    white = torch.randn(_FIELDS, *shape, generator=rng)
    fields = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=shape[1:])
    low, high = fields.flatten(1).aminmax(dim=1)
    low, high = low.view(-1, 1, 1, 1), high.view(-1, 1, 1, 1)
    return (fields - low) / (high - low).clamp_min(_TINY)


def _fresh(channels: int, rng: torch.Generator) -> dict[str, Tensor]:
    width = _CHANNELS
    shapes = {
        "first": (width, channels, 3, 3),
        "second": (width, width, 3, 3),
        "third": (2 * width, 2 * width),
        "last": (2 * width, 1),
    }
    network: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        inputs = math.prod(shape[1:]) if len(shape) == 4 else shape[0]
        network[name] = torch.randn(shape, generator=rng) * math.sqrt(2 / inputs)
        network[f"{name}_bias"] = torch.zeros(shape[0] if len(shape) == 4 else shape[1])
    return {name: weight.requires_grad_() for name, weight in network.items()}
