"""Token support: read the tokens of a batch off the embedding gradient, and their order where one record allows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gradleak.core.attack import Attack, Clock, Reconstruction, Status
from gradleak.core.batch import Modality
from gradleak.core.errors import NotApplicableError
from gradleak.core.knowledge import View
from gradleak.core.specs import name_of
from gradleak.core.update import Update
from gradleak.mechanics.embeddings.labels import single_label
from gradleak.mechanics.embeddings.rows import EmbeddingChannel


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSupport(Attack):
    """The embedding channel: no search, no replay.

    A token's row of the embedding gradient is non-zero exactly if the token occurs. With one record and a learned,
    shared position table the order and the repetitions follow too. Labels come from the sign of the head's bias.

    Guarantees:
        Without noise, with an untied embedding that is trained with a plain gradient or SGD, the set of tokens is
        exact, whatever the batch size, the dropout or the clipping. Multiplicities are known only with the order.

    Source: row support: Melis et al. 2019; positions: the incidence identity of ``mechanics.tokens``.
    """

    summary: ClassVar[str] = (
        "Which tokens occur, from the non-zero rows of the embedding gradient; exact without noise."
    )
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    needs: ClassVar[frozenset[str]] = frozenset({"subject"})
    uses: ClassVar[frozenset[str]] = frozenset({"batch_size", "seq_len", "trainer", "stages"})

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        anatomy = view["subject"].anatomy
        batch_size, seq_len = view.get("batch_size"), view.get("seq_len")
        channel = EmbeddingChannel.of(
            update,
            anatomy,
            trainer=view.get("trainer"),
            batch_size=batch_size,
            at_most=batch_size * seq_len if batch_size and seq_len else None,
        )
        if channel is None:
            raise NotApplicableError("The token embedding is not part of the update (frozen, or not shared).")
        support = channel.support
        ordered = channel.order_of_one() if batch_size == 1 else None
        label = single_label(update, anatomy, batch_size=batch_size or 0)
        present = channel.classes or frozenset()
        evidence = "rows of absent tokens are exactly zero" if support.exact else "told from a dense background of rows"
        records = (support.ids if ordered is None else ordered,) if support.ids.numel() else ()
        return Reconstruction(
            records=records,
            ordered=ordered is not None,
            confidence=tuple(torch.ones(len(ids)) for ids in records) if support.exact else (),
            labels=None if label is None else (label,),
            status=Status.CONVERGED if support.ids.numel() else Status.NOTHING_FOUND,
            message=f"{support.ids.numel()} distinct tokens, {evidence}"
            + ("; order from the position gradient." if ordered is not None else "; no order."),
            adapted=tuple(name_of(stage) for stage in view.get("stages") or ()),
            statistics={
                "distinct_tokens": float(support.ids.numel()),
                "exact_support": float(support.exact),
                "classes_present": float(len(present)),
            }
            | ({} if channel.longest is None else {"longest_record": float(channel.longest)}),
        )
