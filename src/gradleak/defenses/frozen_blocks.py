"""Why: the closer a layer is to the input, the more plainly its gradient shows the tokens. Training only the top of a
transformer is common anyway. Must not touch the module that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils._pytree import tree_map

from gradleak.core.errors import ModelError
from gradleak.core.stage import ModelStage
from gradleak.defenses._tensors import require
from gradleak.models import Subject
from gradleak.models.anatomy import Block
from gradleak.models.attention import sample_inputs


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenBlocks(ModelStage):
    """Does not train, hence does not share, the first transformer blocks and everything below them.

    Everything below is what gets no gradient if none flows past the input of the first trained block: patch projection,
    class token, the norm of the embeddings; and always the token and position tables. With a tied head the head is the
    token table and stays out too.

    Args:
        blocks: how many blocks are frozen, at least 0 and fewer than the model has, so that something is left.

    Raises:
        SpecError: if ``blocks`` is negative.
        ModelError: if the model has no more blocks than that.

    Guarantees:
        The gradients of the remaining blocks and of the head are as they were.
        Span checks then meet the inputs of the first trained block, which depend on all tokens of a record.

    Source: the notes on scope controls.
    """

    summary: ClassVar[str] = "Trains and shares only the top of the model: the first blocks and all below are frozen."

    blocks: int

    def __post_init__(self) -> None:
        require(self.blocks >= 0, "frozen_blocks", "blocks", self.blocks, "at least 0")

    def change(self, subject: Subject) -> Subject:
        anatomy = subject.anatomy
        if self.blocks >= len(anatomy.blocks):
            raise ModelError(
                f"frozen_blocks: {subject.name} has {len(anatomy.blocks)} blocks, so at most {len(anatomy.blocks) - 1} "
                f"can be frozen, not {self.blocks}."
            )
        frozen = frozenset(subject.trainable()) - _above(subject, anatomy.blocks[self.blocks])
        frozen |= {name for name in (anatomy.token_embedding, anatomy.position_embedding) if name is not None}
        if not subject.trainable().keys() - frozen:
            raise ModelError(f"frozen_blocks: nothing of {subject.name} would be left to train.")
        return replace(subject, frozen=subject.frozen | frozen)


def _above(subject: Subject, block: Block) -> frozenset[str]:
    """The parameters that still get a gradient if none flows past the input of ``block``: in it, and after it."""
    levels = zip(*(linear.module.split(".") for linear in block.maps()), strict=False)
    shared = takewhile(lambda level: len(set(level)) == 1, levels)
    home = subject.module.get_submodule(".".join(level[0] for level in shared))

    def cut(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return tree_map(_detached, args), tree_map(_detached, kwargs)

    handle = home.register_forward_pre_hook(cut, with_kwargs=True)
    try:
        with torch.enable_grad():
            sample = sample_inputs(subject.module)
            image = subject.modality == "image"
            logits = subject.logits(pixels=sample) if image else subject.logits(embeddings=sample)
            reached = subject.trainable()
            total = logits.square().sum()
            slopes = torch.autograd.grad(total, list(reached.values()), allow_unused=True)
    finally:
        handle.remove()
    return frozenset(name for name, slope in zip(reached, slopes, strict=True) if slope is not None)


def _detached(thing: Any) -> Any:
    return thing.detach() if isinstance(thing, torch.Tensor) else thing
