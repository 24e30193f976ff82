"""The staged attack on bare attention: exact where theory says so, and refused where it does not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradleak.attacks.attention_exact.solve import mixed_values, recover, single_head
from gradleak.core.errors import NotApplicableError, UsageError
from gradleak.mechanics.attention.softmax import Heads

pytestmark = pytest.mark.oracle


def instance(n: int, d: int, heads: int, seed: int) -> tuple[Heads, Tensor, Tensor, torch.Generator]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=g)

    x, b, k, root = normal(n, d), normal(n, d), d // heads, math.sqrt(d)
    if heads == 1:
        return single_head(normal(d, d) / root, normal(d, d) / root, 1 / root), x, b, g
    q, key, v, o = (normal(heads, *shape) / root for shape in ((d, k), (d, k), (d, k), (k, d)))
    return Heads(query=q, key=key, value=v, output=o, scale=1 / math.sqrt(k)), x, b, g


@pytest.mark.parametrize(("n", "d", "heads"), [(4, 8, 1), (8, 16, 1), (16, 32, 1), (4, 8, 2), (8, 16, 8)])
def test_stage_one_is_exact(n: int, d: int, heads: int) -> None:
    for seed in range(5):
        layer, x, b, _ = instance(n, d, heads, seed)
        point = layer.layer().at(x, b)
        truth = (point.weights @ (x @ layer.value)).transpose(0, 1).flatten(1)
        found = mixed_values(layer, layer.split(point.gradient()).output, b)
        assert float((found - truth).norm() / truth.norm()) < 1e-8


@pytest.mark.parametrize(("n", "d", "heads"), [(2, 4, 1), (4, 8, 1), (4, 8, 2), (4, 8, 4)])
def test_staged_attack_recovers_the_data(n: int, d: int, heads: int) -> None:
    """Ten instances each, none missed; the notes have 99 % over all sizes with d ≥ 2n."""
    for seed in range(10):
        layer, x, b, g = instance(n, d, heads, 100 + seed)
        found = recover(layer, layer.split(layer.layer().at(x, b).gradient()), b, rng=g)
        assert found.exact
        assert float((found.inputs - x).norm() / x.norm()) < 1e-6


def test_below_twice_the_tokens_it_says_why_not() -> None:
    layer, x, b, g = instance(5, 8, 1, 0)
    gradient = layer.split(layer.layer().at(x, b).gradient())
    with pytest.raises(NotApplicableError, match="3 free parameters"):
        recover(layer, gradient, b, rng=g)


def test_what_it_cannot_use_is_refused() -> None:
    layer, x, b, g = instance(3, 8, 1, 0)
    gradient = layer.split(layer.layer().at(x, b).gradient())
    with pytest.raises(UsageError, match="at least 1"):
        recover(layer, gradient, b, rng=g, starts=0)
    with pytest.raises(UsageError, match="square output"):
        mixed_values(layer, gradient.output, b[:, :4])
    b[1] = b[0]
    with pytest.raises(NotApplicableError, match="linearly dependent"):
        mixed_values(layer, gradient.output, b)
    flat = Heads(query=layer.query, key=layer.key, value=layer.value, output=0 * layer.output, scale=1.0)
    with pytest.raises(NotApplicableError, match="singular"):
        mixed_values(flat, gradient.output, x)
    causal = Heads(
        query=layer.query, key=layer.key, value=layer.value, output=layer.output, scale=layer.scale, causal=True
    )
    with pytest.raises(NotApplicableError, match="causal"):
        recover(causal, gradient, x, rng=g)
    with pytest.raises(UsageError, match="One head"):
        single_head(torch.zeros(3, 2), torch.zeros(3, 3), 1.0)
