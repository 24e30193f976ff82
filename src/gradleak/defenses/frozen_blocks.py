"""The closer a layer is to the input, the more plainly its gradient shows the tokens. Training only the top of a
transformer is common anyway. Must not touch the module that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from gradleak.core.errors import ModelError
from gradleak.core.stage import ModelStage
from gradleak.defenses._tensors import require
from gradleak.models import Subject
from gradleak.models.running.layer_order import parameters_above


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
        frozen = frozenset(subject.trainable()) - parameters_above(subject, anatomy.blocks[self.blocks].path)
        frozen |= {name for name in (anatomy.token_embedding, anatomy.position_embedding) if name is not None}
        if not subject.trainable().keys() - frozen:
            raise ModelError(f"frozen_blocks: nothing of {subject.name} would be left to train.")
        return replace(subject, frozen=subject.frozen | frozen)
