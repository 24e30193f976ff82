"""What is shared: a mapping of names that holds no broken number and cannot be changed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradleak.core.errors import DataError
from gradleak.core.update import Update, all_finite

pytestmark = pytest.mark.property

numbers = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=9)


@given(st.dictionaries(st.text(max_size=3), numbers, min_size=1, max_size=4))
def test_norm_and_entries_are_those_of_all_numbers_in_a_row(lists: dict[str, list[float]]) -> None:
    update = Update({name: torch.tensor(values) for name, values in lists.items()})
    everything = [value for values in lists.values() for value in values]
    assert update.entries() == len(everything) and set(update) == set(lists) and len(update) == len(lists)
    assert update.norm() == pytest.approx(math.sqrt(math.fsum(v * v for v in everything)), rel=1e-9, abs=1e-12)


def test_the_norm_of_short_formats_is_accumulated_in_double() -> None:
    assert Update({"a": torch.full((10_000,), 300.0, dtype=torch.float16)}).norm() == pytest.approx(3e4)


@given(numbers, st.integers(0, 8), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_one_broken_entry_is_enough(values: list[float], place: int, broken: float) -> None:
    tensor = torch.tensor(values)
    assert all_finite(tensor)
    tensor[place % len(values)] = broken
    assert not all_finite(tensor)
    with pytest.raises(DataError, match=r"'w'.*NaN or infinite"):
        Update({"v": torch.zeros(2), "w": tensor})


def test_what_cannot_hold_nan_is_finite() -> None:
    assert all_finite(torch.zeros(0)) and all_finite(torch.tensor([1, 2]))


def test_an_empty_update_is_refused() -> None:
    with pytest.raises(DataError, match="no parameter was shared"):
        Update({})


def test_it_is_detached_and_cannot_be_changed() -> None:
    weight = torch.ones(2, requires_grad=True)
    tensors = {"w": 2 * weight}
    update = Update(tensors)
    tensors["v"] = torch.zeros(1)
    assert list(update) == ["w"] and not update["w"].requires_grad
    with pytest.raises(TypeError):
        update["w"] = torch.zeros(2)  # type: ignore[index]


def test_map_sees_every_name_once() -> None:
    update = Update({"a": torch.ones(1), "b": 2 * torch.ones(1)})
    seen: list[str] = []
    doubled = update.map(lambda name, tensor: (seen.append(name), 2 * tensor)[1])
    assert seen == ["a", "b"] and doubled["b"].tolist() == [4.0] and update["b"].tolist() == [2.0]
