"""Tokens are placed by the tables' gradients, as far as the law says."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.rng import derive
from gradleak.mechanics.embeddings.placement import place_tokens
from gradleak.theory.identifiability.placement import most_placed

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("tokens", [60, 120])
def test_tokens_are_placed_with_fewer_equations_than_tokens(tokens: int) -> None:
    rng = derive(tokens, "placement")
    rows = torch.randn(tokens, 96, generator=rng) * torch.rand(tokens, 1, generator=rng).add(0.1)
    truth = torch.randint(6, (tokens,), generator=rng)
    places = torch.zeros(6, 96).index_add(0, truth, rows)
    shares = place_tokens(rows, places)
    assert torch.allclose(shares.sum(dim=1), torch.ones(tokens, dtype=torch.float64))
    assert torch.equal(shares.argmax(dim=1), truth)


def test_placement_fails_where_half_the_tokens_exceed_the_equations() -> None:
    rng = derive(0, "placement")
    rows, truth = torch.randn(400, 32, generator=rng), torch.randint(6, (400,), generator=rng)
    shares = place_tokens(rows, torch.zeros(6, 32).index_add(0, truth, rows))
    assert float((shares.argmax(dim=1) == truth).double().mean()) < 0.9


@pytest.mark.parametrize(("width", "positions"), [(64, 2), (48, 6)])
def test_places_are_determined_as_far_as_the_law_says(width: int, positions: int) -> None:
    def right(tokens: int) -> float:
        rng = derive(tokens, "law", width)
        rows, truth = torch.randn(tokens, width, generator=rng), torch.randint(positions, (tokens,), generator=rng)
        shares = place_tokens(rows, torch.zeros(positions, width).index_add(0, truth, rows))
        return float((shares.argmax(dim=1) == truth).double().mean())

    most = most_placed(width, positions)
    assert right(int(0.85 * most)) == 1.0
    assert right(int(1.2 * most)) < 0.9
