"""The peak of tensor memory against sums done by hand."""

from __future__ import annotations

import pytest
import torch

from gradleak.harness.utility.memory import PeakMemory

pytestmark = pytest.mark.oracle

FLOAT = 4


def test_counts_what_lives_at_once_and_forgets_what_is_gone() -> None:
    given = torch.ones(1000)
    with PeakMemory() as memory:
        first = given + 1
        view = first[:10]
        second = first * 2
        del first, view
        third = second.reshape(10, 100) - 1
        del second
        fourth = third.sum()
    # first and second live together, then second and third; views, in-place results and what was given cost nothing.
    assert memory.peak == 2 * 1000 * FLOAT
    assert fourth.item() == 3000.0


def test_what_a_vectorized_pass_makes_is_counted_whole() -> None:
    rows = torch.ones(8, 100)
    with PeakMemory() as memory:
        kept = torch.func.vmap(lambda row: row * 2)(rows)
    assert memory.peak == kept.numel() * FLOAT
