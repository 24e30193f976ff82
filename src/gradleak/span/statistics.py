"""The names of the statistics that others read off a reconstruction of this engine: a report, another strategy, a test. Each name is
spelled here and nowhere else. Must not know who reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NULL_CUT = "null_cut"
"""Largest distance from the space at which a token passed; written wherever every token passed a test."""
MISSED_DIRECTIONS = "missed_directions"
"""Directions of the gradient that no proposed record explains."""
TESTED = "tested"
"""Continuations that a search tested."""
PROPOSED_TOKENS = "proposed_tokens"
TOKENS_DUE_TO_PRIOR = "tokens_due_to_prior"
SAID_BY_PRIOR_ALONE = "said_by_prior_alone"
_BEFORE = "owed_to_prior"
"""As records of earlier versions name ``TOKENS_DUE_TO_PRIOR``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorShare:
    """What a language model added to a reconstruction.

    Attributes:
        proposed: tokens of the reconstruction.
        due_to_prior: those that differ from the solution of the update alone.
        said_by_prior_alone: those that the language model proposes without the update.
    """

    proposed: int
    due_to_prior: int
    said_by_prior_alone: int

    @staticmethod
    def of(statistics: Mapping[str, float]) -> PriorShare | None:
        """None where no language model was asked."""
        due = statistics.get(TOKENS_DUE_TO_PRIOR, statistics.get(_BEFORE))
        if due is None:
            return None
        return PriorShare(
            proposed=int(statistics[PROPOSED_TOKENS]),
            due_to_prior=int(due),
            said_by_prior_alone=int(statistics[SAID_BY_PRIOR_ALONE]),
        )
