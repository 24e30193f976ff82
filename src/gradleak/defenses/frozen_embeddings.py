"""The rows of a trained token table name the tokens of a batch; a table that is not trained has no rows to share.
Must not touch the module that it is given: what is frozen is a property of the subject.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from gradleak.core.errors import ModelError
from gradleak.core.stage import ModelStage
from gradleak.models import Subject


@dataclass(frozen=True, kw_only=True, slots=True)
class FrozenEmbeddings(ModelStage):
    """Does not train, hence does not share, the token table and the learned position table.

    With a tied head the head is the token table and stays out too. A vision model keeps its patch projection, which is
    a linear map and no table; its position table is frozen.

    Args:
        positions: freeze the learned position table as well.

    Raises:
        ModelError: if the model has no table to freeze, or nothing is left to train.

    Guarantees:
        No released tensor has a row per token or, with ``positions``, per place. The other gradients are as they were.
        Does not stop an attack on the first linear maps, whose gradients are spanned by the embeddings of the tokens.

    Source: the notes on scope controls; April (Lu et al. 2022) argues for not sharing position gradients.
    """

    summary: ClassVar[str] = "Does not train or share the token and position tables; the rest stays as it is."

    positions: bool = True

    def change(self, subject: Subject) -> Subject:
        tables = {subject.anatomy.token_embedding, subject.anatomy.position_embedding if self.positions else None}
        frozen = frozenset(name for name in tables if name is not None and name in subject.trainable())
        if not frozen:
            raise ModelError(
                f"frozen_embeddings: {subject.name} trains no table of tokens or positions, so there is nothing to freeze. "
                "Leave the stage out."
            )
        if not subject.trainable().keys() - frozen:
            raise ModelError(f"frozen_embeddings: nothing of {subject.name} would be left to train.")
        return replace(subject, frozen=subject.frozen | frozen)
