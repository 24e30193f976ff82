"""PRECODE and its successors send what a layer computes through a narrow random code. The two kinds of code stand here
once for the defenses that insert them. Must not know any defense.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gradleak.models.running.noise_inputs import Noisy


class Bottleneck(Noisy):
    """A variational bottleneck: ``z = μ + softplus(s) ξ``, ξ ~ N(0, 1); subclasses say what makes μ, s and the output.

    The penalty of a record is β KL(N(μ, softplus(s)²) ‖ N(0, 1)) in bits, summed over the code's entries.
    """

    def __init__(self, beta: float) -> None:
        super().__init__(0.0)
        self.beta = beta

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the code, ``[records ...]``."""
        raise NotImplementedError

    def decoded(self, code: Tensor, x: Tensor) -> Tensor:
        """What takes the place of ``x``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.moments(x)
        return self.decoded(mean + std * self.noise, x)

    def noise_shape(self, x: Tensor) -> tuple[int, ...]:
        with torch.no_grad():
            return tuple(self.moments(x)[0].shape)

    def draw(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=rng)

    def relaxed(self, latent: Tensor) -> Tensor:
        return latent

    def penalty(self, x: Tensor) -> Tensor:
        mean, std = self.moments(x)
        terms = 0.5 * (mean.square() + std.square() - 1.0) - std.log()
        return self.beta / math.log(2.0) * terms.flatten(1).sum(1)


class LinearBottleneck(Bottleneck):
    """Linear maps make the code of every vector ``[... width]`` and the vector that takes its place."""

    def __init__(self, width: int, code: int, beta: float) -> None:
        super().__init__(beta)
        self.encoder = nn.Linear(width, 2 * code)
        self.decoder = nn.Linear(code, width)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, scale = self.encoder(x).chunk(2, dim=-1)
        return mean, nn.functional.softplus(scale)

    def decoded(self, code: Tensor, x: Tensor) -> Tensor:
        return self.decoder(code)


class ConvolutionalBottleneck(Bottleneck):
    """Convolutions over the grid of a vision transformer's patches; no biases.

    The class token, which has no place on the grid, goes through the same convolutions as an image of one patch.
    """

    def __init__(self, width: int, code: int, kernel: int, beta: float, grid: tuple[int, int]) -> None:
        super().__init__(beta)
        self.grid = grid
        self.encoder = nn.Conv2d(width, 2 * code, kernel, padding=kernel // 2, bias=False)
        self.decoder = nn.Conv2d(code, width, 1, bias=False)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, scale = self._convolved(self.encoder, x).chunk(2, dim=-1)
        return mean, nn.functional.softplus(scale.clamp(-5.0, 5.0))

    def decoded(self, code: Tensor, x: Tensor) -> Tensor:
        return self._convolved(self.decoder, code)

    def _convolved(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        """``[records tokens channels]`` in and out; the tokens before the patches are convolved one by one."""
        records, tokens, channels = x.shape
        extra = tokens - math.prod(self.grid)
        first = x[:, :extra].reshape(records * extra, channels, 1, 1)
        patches = x[:, extra:].mT.reshape(records, channels, *self.grid)
        parts = [layer(patches).flatten(2).mT]
        if extra:
            parts.insert(0, layer(first).reshape(records, extra, -1))
        return torch.cat(parts, 1)
