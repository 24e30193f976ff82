"""What the closed forms imply: the counting law, gauge identities, symmetries, the subspaces that a gradient spans."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.mechanics.attention.softmax import Heads, HeadsGradient, data_jacobian

pytestmark = pytest.mark.oracle


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=rng(seed))


def heads_of(model: int, count: int, seed: int = 900) -> Heads:
    k = model // count
    return Heads(
        query=normal(count, model, k, seed=seed + 1) / model**0.5,
        key=normal(count, model, k, seed=seed + 2) / model**0.5,
        value=normal(count, model, k, seed=seed + 3) / model**0.5,
        output=normal(count, k, model, seed=seed + 4) / model**0.5,
        scale=1.0,
    )


def rank(matrix: Tensor) -> int:
    values = torch.linalg.svdvals(matrix)
    return int((values > 1e-9 * values[0]).sum())


def predicted_rank(seq: int, model: int, count: int, *, targets: bool, batch: int = 1) -> int:
    """min(unknowns, 4d² − 2d²/H), one less for one head with unknown targets and n ≤ d."""
    unknowns = batch * seq * model * (2 if targets else 1)
    equations = 4 * model**2 - 2 * model**2 // count
    deficient = targets and count == 1 and batch == 1 and seq <= model
    return min(unknowns, equations) - int(deficient)


@pytest.mark.parametrize("targets", [False, True])
@pytest.mark.parametrize(("model", "count"), [(4, 1), (4, 2), (4, 4), (6, 1), (6, 3), (8, 2)])
def test_counting_law_on_a_grid(model: int, count: int, targets: bool) -> None:
    for seq in range(2, 4 * model + 1, 1 if model == 4 else 3):
        point = heads_of(model, count).layer().at(normal(seq, model, seed=seq), normal(seq, model, seed=100 + seq))
        found = rank(data_jacobian(point, heads_of(model, count), with_targets=targets))
        assert found == predicted_rank(seq, model, count, targets=targets), (seq, model, count, targets)


@pytest.mark.parametrize(("batch", "count", "wanted"), [(3, 1, 32), (3, 2, 48), (2, 1, 32), (4, 4, 56)])
def test_counting_law_for_an_averaged_batch(batch: int, count: int, wanted: int) -> None:
    seq, model = 4, 4
    heads = heads_of(model, count)
    point = heads.layer().at(normal(batch, seq, model, seed=1), normal(batch, seq, model, seed=2))
    stacked = data_jacobian(point, heads)
    found = rank(torch.cat(list(stacked), 1))
    assert found == wanted == predicted_rank(seq, model, count, targets=False, batch=batch)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_gauge_identities(count: int) -> None:
    heads = heads_of(8, count)
    g = heads.split(heads.layer().at(normal(5, 8, seed=1), normal(5, 8, seed=2)).gradient())

    def gaps(g: HeadsGradient) -> tuple[float, float]:
        qk = heads.query.mT @ g.query - g.key.mT @ heads.key
        vo = heads.value.mT @ g.value - g.output @ heads.output.mT
        return float(qk.norm() / g.query.norm()), float(vo.norm() / g.value.norm())

    assert max(gaps(g)) < 1e-12
    moved = HeadsGradient(query=g.query, key=1.01 * g.key, value=g.value, output=0.99 * g.output)
    assert min(gaps(moved)) > 1e-4


def test_duplicated_token_and_label_cost_rank_and_a_duplicated_token_alone_does_not() -> None:
    heads = heads_of(8, 2)
    x, b = normal(4, 8, seed=1), normal(4, 8, seed=2)
    x[1] = x[0]
    alone = rank(data_jacobian(heads.layer().at(x, b), heads))
    b[1] = b[0]
    both = rank(data_jacobian(heads.layer().at(x, b), heads))
    assert alone == 32 and both < 32


def test_zero_error_gives_zero_gradient() -> None:
    heads = heads_of(8, 2)
    x = normal(4, 8, seed=1)
    point = heads.layer().at(x, heads.layer().output(x))
    assert float(point.gradient().flat().abs().max()) == 0.0
    assert rank(data_jacobian(point, heads)) == 32


def test_symmetries() -> None:
    heads = heads_of(6, 2)
    x, b = normal(4, 6, seed=1), normal(4, 6, seed=2)
    g = heads.layer().at(x, b).gradient().flat()
    order = torch.tensor([2, 0, 3, 1])
    for moved in (heads.layer().at(x[order], b[order]), heads.layer().at(-x, -b)):
        assert float((moved.gradient().flat() - g).norm() / g.norm()) < 1e-12
    known = heads.layer().at(x[order], b).gradient().flat()
    assert float((known - g).norm() / g.norm()) > 0.1, "known targets remove them"


def test_subspace_leak() -> None:
    """G_V spans the tokens, the rows of G_W their differences only (n ≤ d)."""
    heads = heads_of(8, 1)
    x = normal(4, 8, seed=1)
    g = heads.layer().at(x, normal(4, 8, seed=2)).gradient()

    def off(vectors: Tensor, basis: Tensor) -> float:
        return float((vectors - basis @ (basis.T @ vectors)).norm() / vectors.norm())

    def left(matrix: Tensor, size: int) -> Tensor:
        return torch.linalg.svd(matrix)[0][:, :size]

    assert off(x.T, left(g.values[0], 4)) < 1e-10
    assert off((x - x.mean(0)).T, left(g.scores[0].T, 3)) < 1e-10
    assert off(x.T, left(g.values[0], 3)) > 0.1, "a subspace that is too small misses tokens"
    assert off(x.T, left(g.scores[0].T, 3)) > 0.1, "keys hold differences only"


def test_one_parameter_family_of_wrong_data() -> None:
    """One head, unknown real targets, n ≤ d: a curve of other data with the same gradient, followed for 60 steps."""
    heads = heads_of(4, 1)
    layer = heads.layer()
    x, b = normal(3, 4, seed=1), normal(3, 4, seed=2)
    target, start = layer.at(x, b).gradient().flat(), x.clone()
    before: Tensor | None = None
    for _ in range(60):
        j = data_jacobian(layer.at(x, b), with_targets=True)
        along = torch.linalg.svd(j)[2][-1]
        along = along if before is None or float(along @ before) > 0 else -along
        before = along
        x, b = x + 0.05 * along[:12].view(3, 4), b + 0.05 * along[12:].view(3, 4)
        for _ in range(4):
            point = layer.at(x, b)
            j = data_jacobian(point, with_targets=True)
            step = torch.linalg.lstsq(j, target - point.gradient().flat(), driver="gelsd", rcond=1e-9).solution
            x, b = x + step[:12].view(3, 4), b + step[12:].view(3, 4)
    assert float((layer.at(x, b).gradient().flat() - target).norm() / target.norm()) < 1e-12
    assert float((x - start).norm() / start.norm()) > 0.1
