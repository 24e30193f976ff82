"""A trained embedding is a channel of its own. Its rows tell which tokens a batch holds, the position table how long its
records are, the head which classes occur; a tied head writes into every row. Attacks read it here, in one way. Must not know
how attacks search.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.mechanics.embeddings.labels import classes_present
from gradleak.mechanics.embeddings.support import Support, order_of_one, row_noise, rows_above, token_support
from gradleak.models import Anatomy

_FALSE_ALARM = 1e-3
"""Probability that noise alone puts any row of a whole table among the used ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingChannel:
    """What the tables and the head of one update tell without any search.

    Attributes:
        rows: gradient (or step, less what weight decay alone would do) of the token table; ``places``: of the position table's rows
            that received a signal, in order. None where not shared, or not told from noise.
        support: tokens that occur; ``exact`` only if absent tokens are exactly zero, so not with a tied head or noise; ``reliable``
            also under white noise.
        place_noise: standard deviation per entry of the noise on ``places``.
        longest: number of positions that the longest record has, from the position table; None where that does not tell it.
        classes: classes that occur, from the signs of the head's bias; None where it has none.
    """

    rows: Float[Tensor, "vocab model"]
    places: Float[Tensor, "positions model"] | None
    place_noise: float
    support: Support
    longest: int | None
    classes: frozenset[int] | None

    @staticmethod
    def of(
        update: Mapping[str, Tensor],
        anatomy: Anatomy,
        *,
        trainer: ClientTrainer | None = None,
        batch_size: int | None = None,
        at_most: int | None = None,
    ) -> EmbeddingChannel | None:
        """None if the token embedding is not part of the update.

        Args:
            at_most: upper bound on the number of distinct tokens, if known.
        """
        rows = _signal(update, anatomy.token_embedding, trainer, batch_size)
        if rows is None:
            return None
        table = _signal(update, anatomy.position_embedding, trainer, batch_size)
        used, noise = (None, 0.0) if table is None else _used(table)
        return EmbeddingChannel(
            rows=rows,
            places=None if table is None or used is None else table[used],
            place_noise=noise,
            support=_support(rows, anatomy, trainer, at_most),
            # Some tables leave their first rows to padding: what counts is how many are used, without a gap.
            longest=None if used is None or not _without_gap(used) else len(used),
            classes=classes_present(update, anatomy),
        )

    def order_of_one(self) -> Int64[Tensor, " seq"] | None:
        """The tokens of a single record in order, where both tables tell it."""
        return None if self.places is None else order_of_one(self.rows, self.places, self.support.ids)


def _support(rows: Tensor, anatomy: Anatomy, trainer: ClientTrainer | None, at_most: int | None) -> Support:
    """A tied head writes into the rows of all tokens: where some of its rows are zero, they were left out and tell nothing."""
    white = trainer is None or trainer.training.share == "gradient"
    support = token_support(rows, at_most=at_most, white=white)
    return replace(support, exact=False, noise=None) if anatomy.tied and support.exact else support


def _signal(
    update: Mapping[str, Tensor], name: str | None, trainer: ClientTrainer | None, batch_size: int | None
) -> Float[Tensor, "rows model"] | None:
    """The update of a table beyond what it would be without any gradient."""
    if name is None or name not in update:
        return None
    rows = update[name].float()
    return rows if trainer is None else rows - trainer.idle(name, batch_size)


def _used(table: Float[Tensor, "positions model"]) -> tuple[Int64[Tensor, " used"] | None, float]:
    """Rows that received a signal, and the noise: all that are not zero; where noise fills the table, those of more energy than it has.

    None where nothing stands out, or so many rows are used that they hide what noise is.
    """
    energy = table.double().square().sum(1)
    if int((energy > 0).sum()) <= len(table) // 2:
        return energy.nonzero().flatten(), 0.0
    noise = row_noise(energy, table.shape[1], false_alarms=_FALSE_ALARM)
    if noise is None:
        return None, 0.0
    used = rows_above(energy, table.shape[1], noise=noise, false_alarms=_FALSE_ALARM).nonzero().flatten()
    return (used if len(used) else None), noise


def _without_gap(used: Int64[Tensor, " used"]) -> bool:
    return len(used) > 0 and int(used[-1] - used[0]) + 1 == len(used)
