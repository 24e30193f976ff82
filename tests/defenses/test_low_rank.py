"""The low-rank release is the best approximation, and what it leaves the attacker."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.defenses.low_rank import LowRank

pytestmark = pytest.mark.contract


def test_low_rank_is_the_best_approximation() -> None:
    """Eckart and Young: the squared error is the sum of the squared singular values that are left out."""
    u = torch.randn(7, 5, generator=derive(0, "u"), dtype=torch.float64)
    released = LowRank(rank=2).apply(Update({"a": u}), derive(0, "x"))["a"]
    sizes = torch.linalg.svdvals(u)
    torch.testing.assert_close((u - released).square().sum(), sizes[2:].square().sum())
    assert int(torch.linalg.matrix_rank(released)) == 2
    torch.testing.assert_close(LowRank(rank=2).surrogate({"a": u[None]}, {"a": released})["a"][0], released)


def test_low_rank_leaves_the_attacker_all_but_what_is_outside_both_spaces() -> None:
    """Of 9 × 6 entries (9 − 2)(6 − 2) are lost, so 26 = 2 (9 + 6 − 2) directions of the candidate still show."""
    u = torch.randn(9, 6, generator=derive(0, "u"), dtype=torch.float64)
    released = {"a": LowRank(rank=2).apply(Update({"a": u}), derive(0, "x"))["a"]}
    directions = {"a": torch.eye(54, dtype=torch.float64).view(54, 9, 6)}
    seen = LowRank(rank=2).surrogate(directions, released)["a"].flatten(1)
    torch.testing.assert_close(seen @ seen, seen)  # a projection
    assert int(torch.linalg.matrix_rank(seen)) == 26
