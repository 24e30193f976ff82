"""A sentence of any allowed length satisfies the layout."""

from __future__ import annotations

import pytest
import torch

from gradleak.span.candidates.types import Candidates
from gradleak.span.encoder.attention_equations import Pairs
from gradleak.span.encoder.subset_selection import Layout

pytestmark = pytest.mark.oracle


def numbers(pairs: Pairs, ids: torch.Tensor) -> torch.Tensor:
    return torch.stack(
        [at[(pairs.tokens[at] == token).nonzero()[0, 0]] for at, token in zip(pairs.at, ids, strict=False)]
    )


@pytest.mark.parametrize("closing", [None, 5])
def test_a_sentence_of_any_allowed_length_satisfies_the_layout(closing: int | None) -> None:
    words = torch.tensor([3, 4, 5])
    candidates = Candidates(
        tokens=(words,) * 4, residuals=(torch.zeros(3),) * 4, nearest=words[[0, 0, 0, 0]], null_cut=0.1, positional=True
    )
    pairs = Pairs.of(candidates)
    layout = Layout.of(pairs, [2, 4], closing)
    for ids, end in (([3, 5], 0), ([3, 4, 4, 5], 1), ([3, 5, 4, 5], 1)):
        x = torch.zeros(layout.matrix.shape[1], dtype=torch.float64)
        x[numbers(pairs, torch.tensor(ids))] = 1.0
        x[pairs.count + end] = 1.0
        if closing is not None and len(ids) == 4 and ids[1] == closing:
            x[pairs.count + 2] = 1.0  # A closing token that does not close.
        assert torch.equal(layout.matrix @ x, layout.wanted)
