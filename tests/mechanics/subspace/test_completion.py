"""Survivors of a pruned matrix of low rank against the matrix itself."""

import pytest
import torch

from gradleak.mechanics.subspace.completion import complete, determinable, is_pruned

pytestmark = pytest.mark.oracle


def _gradient(rank: int, features: int, outputs: int, seed: int) -> torch.Tensor:
    """Inputs times errors whose sizes differ by features, outputs and tokens, in float32."""
    rng = torch.Generator().manual_seed(seed)

    def sizes(count: int, spread: float) -> torch.Tensor:
        return torch.exp(spread * torch.randn(count, generator=rng))

    inputs = torch.randn(features, rank, generator=rng) * sizes(features, 0.3).unsqueeze(1)
    errors = torch.randn(rank, outputs, generator=rng) * sizes(outputs, 0.7) * sizes(rank, 1.0).unsqueeze(1)
    return inputs @ errors


def _largest(matrix: torch.Tensor, share: float) -> torch.Tensor:
    cut = matrix.abs().flatten().kthvalue(int((1 - share) * matrix.numel())).values
    return matrix * (matrix.abs() > cut)


@pytest.mark.parametrize("share", [0.6, 0.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_space_comes_back_from_enough_survivors(share: float, seed: int) -> None:
    rank, features = 12, 120
    matrix = _gradient(rank, features, 160, seed)
    done = complete(_largest(matrix, share), summands=20)
    assert done is not None
    space = done.space(features)
    assert space.inputs == rank
    members = torch.linalg.svd(matrix.double(), full_matrices=False)[0][:, :rank].T
    residual, expected = space.residual(members), space.expected(members)
    assert float(residual.max()) < 1e-3
    # Members show what the held survivors announce, not more.
    assert float((residual / expected).max()) < 10.0
    strangers = torch.randn(50, features, generator=torch.Generator().manual_seed(seed))
    assert float(space.residual(strangers).min()) > 0.5


def test_too_few_survivors_are_not_taken_for_an_answer() -> None:
    rank, features = 40, 120
    pruned = _largest(_gradient(rank, features, 160, 0), 0.15)
    assert determinable(pruned != 0)[0] < rank
    done = complete(pruned, summands=60)
    assert done is None or done.space(features).blur > 1e-2


def test_a_feature_without_survivors_is_left_open() -> None:
    matrix = _gradient(8, 100, 150, 3)
    matrix[:5] *= 1e-4
    done = complete(_largest(matrix, 0.5), summands=12)
    assert done is not None
    space = done.space(100)
    assert space.inputs == 8
    assert space.rank == 8 + 5
    axis = torch.eye(100)[:5]
    assert float(space.residual(axis).max()) < 1e-6


def test_pruning_is_told_from_zeros_that_are_none() -> None:
    matrix = _gradient(8, 100, 150, 4)
    dead = matrix.clone()
    dead[:, ::3] = 0
    assert is_pruned(_largest(matrix, 0.5))
    assert not is_pruned(matrix)
    assert not is_pruned(dead)
    assert not is_pruned(matrix.half())
    assert not is_pruned((matrix / matrix.abs().max() * 127).round())


def test_a_full_rank_matrix_has_no_completion() -> None:
    noise = torch.randn(100, 150, generator=torch.Generator().manual_seed(5))
    done = complete(_largest(noise, 0.7), summands=20)
    assert done is None or done.space(100).blur > 1e-2
