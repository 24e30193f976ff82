"""Which record a picture identifies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.core.errors import DataError
from gradleak.core.metric import Comparison
from gradleak.metrics.identification_rank import IdentificationRank

pytestmark = pytest.mark.oracle


def pair(truth: Tensor, guess: Tensor | None, decoys: tuple[Tensor, ...] = ()) -> Comparison:
    return Comparison(
        truth=(truth,),
        guess=(guess,),
        aligned=((truth, guess),),
        extras=(),
        ordered=True,
        decoys=decoys,
        special_ids=frozenset(),
        vocab_size=0,
        decode=_no_text,
    )


def _no_text(ids: Tensor) -> str:
    raise DataError("images have no text")


def pictures(shape: tuple[int, int, int], blend: float, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    truth = torch.rand(shape, generator=rng, dtype=torch.float64)
    truth = truth.cumsum(dim=-1) / truth.sum(dim=-1, keepdim=True)
    return truth, (1 - blend) * truth + blend * torch.rand(shape, generator=rng, dtype=torch.float64)


def test_identification_rank_of_pictures() -> None:
    truth, guess = pictures((1, 6, 6), 0.2, seed=4)
    others = tuple(pictures((1, 6, 6), 0.0, seed=seed)[0] for seed in range(10, 14))
    rank = IdentificationRank()
    assert rank.values(pair(truth, guess, others)) == [1.0]
    assert rank.values(pair(truth, others[2], others)) == [
        1.0 + sum(bool((others[2] - o).square().mean() < (others[2] - truth).square().mean()) for o in others)
    ]
    assert rank.values(pair(truth, None, others)) == [3.0]
    assert rank.chance(pair(truth, guess, others)) == 3.0
