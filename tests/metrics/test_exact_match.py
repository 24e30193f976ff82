"""An exact match forgives nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.core.metric import Comparison
from gradleak.metrics.exact_match import ExactMatch

pytestmark = pytest.mark.oracle

SPECIAL = frozenset({90, 91})


def ids(*tokens: int) -> Tensor:
    return torch.tensor(tokens, dtype=torch.int64)


def comparison(
    truth: list[Tensor],
    guess: list[Tensor | None],
    *,
    aligned: list[tuple[Tensor, Tensor | None]] | None = None,
    ordered: bool = True,
    decoys: tuple[Tensor, ...] = (),
    vocab_size: int = 12,
    special_ids: frozenset[int] = SPECIAL,
) -> Comparison:
    return Comparison(
        truth=tuple(truth),
        guess=tuple(guess),
        aligned=tuple(aligned or zip(truth, guess, strict=True)),
        extras=(),
        ordered=ordered,
        decoys=decoys,
        special_ids=special_ids,
        vocab_size=vocab_size,
        decode=str,
    )


def test_exact_match_forgives_nothing() -> None:
    truth = ids(1, 2, 3)
    guesses = [ids(1, 2, 3), ids(1, 2), ids(1, 2, 3, 4), ids(2, 1, 3), None]
    given = comparison([truth] * 5, list(guesses))
    assert ExactMatch().values(given) == [1.0, 0.0, 0.0, 0.0, 0.0]
