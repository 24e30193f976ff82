"""Identification by hand, and its chance level."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradleak.core.metric import Comparison
from gradleak.metrics.identification_rank import IdentificationRank

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


def test_identification_rank_by_hand() -> None:
    truth, near, far, same_bag = ids(1, 2, 3, 4), ids(1, 2, 3, 9), ids(7, 8), ids(4, 3, 2, 1)
    rank = IdentificationRank()
    # Likeness to (1, 2, 3): truth 6/7 + 6/7, near the same, same_bag 6/7 + 2/7, far 0.
    assert rank.values(comparison([truth], [ids(1, 2, 3)], decoys=(near, far, same_bag))) == [1.5]
    assert rank.values(comparison([truth], [ids(7, 8)], decoys=(near, far))) == [2.5]
    assert rank.values(comparison([truth], [truth], decoys=(near, far, same_bag))) == [1.0]
    assert rank.values(comparison([truth], [truth])) == []
    assert rank.chance(comparison([truth], [truth])) is None


def test_identification_chance_is_the_rank_of_a_blind_guess() -> None:
    decoys = tuple(ids(token) for token in range(2, 7))
    given = comparison([ids(1)], [None], decoys=decoys)
    blind = math.fsum(range(1, len(decoys) + 2)) / (len(decoys) + 1)
    assert IdentificationRank().chance(given) == blind
    assert IdentificationRank().values(given) == [blind]


def test_a_bag_identifies_each_record_of_a_large_batch() -> None:
    truths = [ids(*range(10 * k, 10 * k + 4)) for k in range(8)]
    bag = torch.cat(truths)
    decoy = ids(*range(0, 80, 10), 1, 11, 200, 201, 202, 203, 204, 205)
    given = comparison(truths, [bag, *[None] * 7], decoys=(decoy,), ordered=False, vocab_size=300)
    assert IdentificationRank().values(given) == [1.0] * 8
