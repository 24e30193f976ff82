"""Some defenses give the model layers that draw at random (bottlenecks that sample, dropout). Here such a draw is a
named tensor that goes in from outside, so that a client draws it, a replay leaves it at its mean, and an attacker can
search for it. Must not know which defense put the layer there.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Noisy(nn.Module):
    """A layer with a random variable of its own: the buffer ``noise``, whose first axis is the records'.

    A scalar buffer stands for "no draw": the layer then computes with the variable's mean.
    """

    noise: Tensor

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.register_buffer("noise", torch.tensor(mean), persistent=False)

    @abstractmethod
    def noise_shape(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the variable for the input ``x``."""

    @abstractmethod
    def draw(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """One value of the variable."""

    @abstractmethod
    def relaxed(self, latent: Tensor) -> Tensor:
        """A value of the variable for any real tensor of its shape, differentiable; its mean at 0. What attackers search."""

    def penalty(self, x: Tensor) -> Tensor | None:
        """What the client's loss gains from this layer, ``[records]``, for the input ``x``; None for nothing."""
        return None


def noisy_layers(module: nn.Module) -> dict[str, Noisy]:
    """By module path, in the order of registration."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Noisy)}


def noise_name(path: str) -> str:
    """The name under which a layer's variable goes into a functional call."""
    return f"{path}.noise"


@contextmanager
def listening(module: nn.Module, hear: Callable[[str, Noisy, Tensor], None]) -> Iterator[None]:
    """Inside, ``hear(path, layer, input)`` is called whenever a noisy layer runs, with the weights that it runs with."""

    def listener(path: str) -> Callable[[nn.Module, Any], None]:
        return lambda layer, args: hear(path, layer, args[0])  # pyright: ignore[reportArgumentType]

    handles = [layer.register_forward_pre_hook(listener(path)) for path, layer in noisy_layers(module).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def copied_structure(module: nn.Module) -> nn.Module:
    """A copy of the tree of modules that shares every parameter and buffer with the original."""
    kept = {id(each): each for each in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, kept)
