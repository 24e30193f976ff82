"""What low-rank adapters hold of the tokens, against gradients of adapters by autograd."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.errors import SpecError
from gradleak.theory.identifiability.adapters import adapter_verdict
from gradleak.theory.identifiability.counting import Uniqueness

pytestmark = pytest.mark.oracle

WIDTH = 40


def held(tokens: int, rank: int, maps: int, *, fresh: bool) -> bool:
    """Whether gradients of ``maps`` adapters that read one input tell its rows from any other vector: by the row space of those
    of A; at B = 0 by that of those of B, in the coordinates A x."""
    rng = torch.Generator().manual_seed(tokens + 100 * rank)
    x = torch.randn(tokens, WIDTH, generator=rng).double()
    other = torch.randn(1, WIDTH, generator=rng).double()
    stacked, sketched = [], []
    for _ in range(maps):
        a = torch.randn(rank, WIDTH, generator=rng).double().requires_grad_()
        b = torch.zeros(WIDTH, rank) if fresh else torch.randn(WIDTH, rank, generator=rng)
        b = b.double().requires_grad_()
        target = torch.randn(tokens, WIDTH, generator=rng).double()
        loss = (torch.tanh(x @ a.T @ b.T) - target).square().sum()
        of_a, of_b = torch.autograd.grad(loss, (a, b))
        stacked.append(of_a)
        sketched.append((of_b, x @ a.detach().T, other @ a.detach().T))
    if fresh:
        assert not torch.cat(stacked).any()
        return all(inside(rows, made) and not inside(rows, stranger) for rows, made, stranger in sketched)
    return inside(torch.cat(stacked), x) and not inside(torch.cat(stacked), other)


def inside(rows: torch.Tensor, vectors: torch.Tensor) -> bool:
    _, s, basis = torch.linalg.svd(rows, full_matrices=False)
    basis = basis[s > 1e-9 * s[0]]
    return float(((vectors - (vectors @ basis.T) @ basis).norm(dim=1) / vectors.norm(dim=1)).max()) < 1e-6


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("tokens", "rank", "maps"), [(3, 4, 1), (4, 4, 1), (5, 4, 1), (8, 4, 2), (9, 4, 2), (12, 4, 3)]
)
def test_the_rank_condition_is_met_where_tokens_are_held(tokens: int, rank: int, maps: int, fresh: bool) -> None:
    verdict = adapter_verdict(rank=rank, maps=maps, inputs=tokens, fresh=fresh)
    assert (verdict.uniqueness is Uniqueness.UNIQUE) is held(tokens, rank, maps, fresh=fresh)


def test_a_rank_of_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="at least 1"):
        adapter_verdict(rank=0, maps=1, inputs=3, fresh=False)
