"""Several defenses change a model from some place on, and must know what lies above it. Read from the flow of
derivatives, not from names. Must not know any defense.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gradleak.models.running.attention import sample_inputs
from gradleak.models.subject import Subject


def parameters_above(subject: Subject, module: str) -> frozenset[str]:
    """The trainable parameters that still get a gradient if none flows past the input of ``module``: in it, and after it."""

    def cut(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return tree_map(_detached, args), tree_map(_detached, kwargs)

    handle = subject.module.get_submodule(module).register_forward_pre_hook(cut, with_kwargs=True)
    try:
        with torch.enable_grad():
            sample = sample_inputs(subject.module)
            image = subject.modality == "image"
            logits = subject.logits(pixels=sample) if image else subject.logits(embeddings=sample)
            reached = subject.trainable()
            slopes = torch.autograd.grad(logits.square().sum(), list(reached.values()), allow_unused=True)
    finally:
        handle.remove()
    return frozenset(name for name, slope in zip(reached, slopes, strict=True) if slope is not None)


def _detached(thing: Any) -> Any:
    return thing.detach() if isinstance(thing, Tensor) else thing
