"""Gradient matching differentiates a gradient, and torch's fused kernels have no second derivative. This is
where a model is switched to plain matrix products, in place, without wrapping or renaming anything.
Must not know any attack.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gradleak.core.errors import ModelError
from gradleak.models.calling import image_shape, reads_pixels, run_module, token_embedding, weight_of
from gradleak.models.running.tracing import evaluating

DIFFERENTIABLE = "eager"


def attention_kernel(module: nn.Module) -> str | None:
    """The name of the attention implementation in use, or None if the module does not choose among several."""
    return getattr(getattr(module, "config", None), "_attn_implementation", None)


def ensure_differentiable(module: nn.Module) -> str:
    """Switches the module to an attention with second derivatives.

    Returns:
        One sentence that says what was done.

    Raises:
        ModelError: if the module uses a fused kernel and offers no switch.
    """
    kernel = attention_kernel(module)
    _plain_experts(module)
    if kernel is None:
        return "The module does not choose among attention kernels; nothing was switched."
    if kernel == DIFFERENTIABLE:
        return "Attention already runs as plain matrix products; nothing was switched."
    _switch(module, DIFFERENTIABLE)
    return f"Attention was switched from {kernel!r}, which has no double backward, to {DIFFERENTIABLE!r}."


@contextmanager
def differentiable(module: nn.Module) -> Iterator[None]:
    """Inside, attention is differentiable twice; after, the module has its own kernel again."""
    kernel = attention_kernel(module)
    ensure_differentiable(module)
    try:
        yield
    finally:
        if kernel not in (None, DIFFERENTIABLE):
            _switch(module, str(kernel))


def probe_double_backward(module: nn.Module) -> bool:
    """True if the gradient of a gradient can be computed through the module as it stands (one tiny forward)."""
    inputs = sample_inputs(module).requires_grad_()
    with evaluating(module), torch.enable_grad():
        output = run_module(module, inputs)
        value = next(iter(output.values())).float().square().sum()
        (first,) = torch.autograd.grad(value, inputs, create_graph=True)
        try:
            (second,) = torch.autograd.grad(first.square().sum(), inputs, allow_unused=True)
        except RuntimeError as error:
            # Anything else that goes wrong here is a bug worth seeing; a missing derivative is the answer "no".
            if "not implemented" not in str(error):
                raise
            return False
    return second is not None


def sample_inputs(module: nn.Module, length: int = 6) -> torch.Tensor:
    """Embeddings ``[1 length model]`` of distinct tokens, or pixels ``[1 channels height width]``; not random."""
    if reads_pixels(module):
        shape = image_shape(module)
        first = next(module.parameters())
        wave = torch.sin(torch.arange(math.prod(shape), device=first.device) * 0.7)
        return wave.reshape(1, *shape).to(first.dtype)
    embedding = token_embedding(module)
    weight = weight_of(embedding)
    # Spread over the vocabulary: special tokens sit at its start, unused rows that may all be alike at its end.
    spread = (weight.shape[0] * (place + 1) // (length + 1) for place in range(length))
    ids = [row for row in dict.fromkeys(spread) if row != getattr(embedding, "padding_idx", None)]
    if len(ids) < 3:
        raise ModelError(f"The token embedding has {weight.shape[0]} rows, too few to tell tokens apart.")
    with torch.no_grad():
        return embedding(torch.tensor([ids], device=weight.device)).detach()


def _plain_experts(module: nn.Module) -> None:
    """Experts as a loop over plain matrix products: the grouped kernel knows neither float64 nor a second derivative."""
    config: Any = getattr(module, "config", None)
    if getattr(config, "_experts_implementation", DIFFERENTIABLE) != DIFFERENTIABLE:
        switch: Any = module.set_experts_implementation
        switch(DIFFERENTIABLE)


def _switch(module: nn.Module, kernel: str) -> None:
    switch: Any = getattr(module, "set_attn_implementation", None)
    if switch is None:
        raise ModelError(
            f"{type(module).__name__} uses the attention kernel {attention_kernel(module)!r} and offers no "
            f"set_attn_implementation(). Build it with attn_implementation={DIFFERENTIABLE!r}."
        )
    switch(kernel)
