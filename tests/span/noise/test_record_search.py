"""Sequences that share most of their tokens with others are dropped."""

from __future__ import annotations

import pytest
import torch

from gradleak.span.noise.record_search import _distinct

pytestmark = pytest.mark.oracle


def test_sequences_that_share_most_with_others_are_dropped() -> None:
    rows = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 1, 1]])
    certain = torch.tensor([[0.0, 5, 5], [0.0, 9, 9], [0.0, 1, 1]])
    assert sorted(_distinct(rows, certain, 2).tolist()) == [1, 2]
