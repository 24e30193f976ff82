"""How many positions are tested: a window that grows until its last positions hold no candidate.
Must not know how a pair of token and position is tested."""

from __future__ import annotations

import torch

from gradleak.core.errors import NotApplicableError
from gradleak.mechanics.probing.probe import reads_context
from gradleak.span.candidates.membership import find_candidates
from gradleak.span.candidates.types import Candidates
from gradleak.span.reading.evidence import AttackInput
from gradleak.span.reading.observed_layer import ObservedLayer

_PROBED_TOKENS = 4


_FIRST_WINDOW = 32


def candidates_of(case: AttackInput, first: ObservedLayer, rng: torch.Generator) -> Candidates:
    """Candidates at every position of a case; where the length is unknown the window grows until its end is empty.

    Raises:
        NotApplicableError: if what the first attention reads depends on other tokens, or members cannot be told from the rest.
    """
    if reads_context(case.subject, first.path, torch.arange(min(_PROBED_TOKENS, case.model.vocab_size))):
        raise NotApplicableError(
            f"The first attention reads {first.path!r}, whose input depends on other tokens already: no token can be tested alone."
        )
    longest = case.subject.anatomy.max_positions or 1_000_000
    if case.seq_len is not None:
        return find_candidates(first, case.model, positions=min(case.seq_len, longest), rng=rng)
    window = min(_FIRST_WINDOW, longest)
    while True:
        found = find_candidates(first, case.model, positions=window, rng=rng)
        if not found.positional or found.length() < window or window == longest:
            return found
        window = min(2 * window, longest)
