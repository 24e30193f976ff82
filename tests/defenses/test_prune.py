"""Each ``Guarantees`` bullet of ``prune``, against a slow sort."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak.core.update import Update
from gradleak.defenses.prune import Prune

pytestmark = pytest.mark.contract

RNG = torch.Generator()


def by_sorting(values: list[float], fraction: Fraction) -> list[float]:
    """The slow way: order by magnitude, then by position; keep the first ⌈(1 - p)·n⌉."""
    keep = math.ceil((1 - fraction) * len(values))
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    kept = set(order[:keep])
    return [value if i in kept else 0.0 for i, value in enumerate(values)]


# Few distinct magnitudes, so that ties are common.
ENTRIES = st.lists(st.integers(-4, 4).map(lambda k: k / 4), min_size=3, max_size=60)
HUNDREDTHS = st.integers(0, 99)


@settings(max_examples=80, deadline=None)
@given(ENTRIES, HUNDREDTHS)
def test_global_scope_is_a_sort_over_everything(values: list[float], hundredths: int) -> None:
    u = Update({"a": torch.tensor(values[:2]), "b": torch.tensor(values[2:]).unsqueeze(1)})
    released = Prune(fraction=hundredths / 100).apply(u, RNG)
    found = torch.cat([released["a"], released["b"].flatten()]).tolist()
    assert found == by_sorting(values, Fraction(hundredths, 100))


@settings(max_examples=80, deadline=None)
@given(ENTRIES, HUNDREDTHS)
def test_tensor_scope_is_a_sort_in_each(values: list[float], hundredths: int) -> None:
    u = Update({"a": torch.tensor(values[:2]), "b": torch.tensor(values[2:])})
    released = Prune(fraction=hundredths / 100, scope="tensor").apply(u, RNG)
    assert released["a"].tolist() == by_sorting(values[:2], Fraction(hundredths, 100))
    assert released["b"].tolist() == by_sorting(values[2:], Fraction(hundredths, 100))


@pytest.mark.parametrize(("fraction", "kept"), [(0.0, 10), (0.1, 9), (0.29, 8), (0.7, 3), (0.9, 1), (0.99, 1)])
def test_counts_are_exact_in_decimals(fraction: float, kept: int) -> None:
    """1 - 0.7 is 0.30000000000000004 in floating point; ten entries must still give three."""
    released = Prune(fraction=fraction).apply(Update({"a": torch.arange(1.0, 11.0)}), RNG)
    assert int((released["a"] != 0).sum()) == kept


def test_half_precision_tensors_share_one_ranking() -> None:
    u = Update({"a": torch.tensor([1.0, 4.0]).bfloat16(), "b": torch.tensor([3.0, 2.0], dtype=torch.float64)})
    released = Prune(fraction=0.5).apply(u, RNG)
    assert released["a"].tolist() == [0.0, 4.0] and released["b"].tolist() == [3.0, 0.0]


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_surrogate_at_the_truth_is_the_release(scope: str) -> None:
    u = Update({"a": torch.randn(30, generator=torch.Generator().manual_seed(0)), "b": torch.arange(8.0)})
    stage = Prune(fraction=0.6, scope=scope)  # type: ignore[arg-type]
    released = stage.apply(u, RNG)
    simulated = stage.surrogate({name: tensor.unsqueeze(0) for name, tensor in u.items()}, released)
    assert all(torch.equal(simulated[name][0], released[name]) for name in u)
