"""The table of valid combinations: every row is reached, what no row covers is refused by name, the page says what the table says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradleak.core.errors import UsageError
from gradleak.privacy.accounting.accountant import account
from gradleak.privacy.plan.axes import Axes
from gradleak.privacy.plan.combinations import COMBINATIONS, find
from gradleak.privacy.plan.combinations_page import page
from gradleak.privacy.plan.file import make_plan
from tests.support.random_plans import random_table

pytestmark = pytest.mark.oracle


def test_the_page_is_the_table() -> None:
    assert (Path(__file__).parents[3] / "docs" / "valid_combinations.md").read_text(encoding="utf-8") == page()


def test_rows_have_names_of_their_own_and_no_place_has_two_laws() -> None:
    assert len({row.name for row in COMBINATIONS}) == len(COMBINATIONS)
    rng = np.random.default_rng(0)
    names = [f.name for f in dataclasses.fields(Axes)]
    values = {name: sorted({value for row in COMBINATIONS for value in getattr(row, name)}) for name in names}
    # The last row of Laplace noise is for what the rows before it leave.
    values["mechanism"].remove("laplace")
    for _ in range(3000):
        axes = Axes(**{name: str(rng.choice(values[name])) for name in names})
        assert len({row.law for row in COMBINATIONS if not row.differences(axes)}) <= 1, axes


def test_every_row_is_reached_by_some_plan() -> None:
    rng = np.random.default_rng(1)
    reached = set()
    for _ in range(4000):
        try:
            reached.add(find(make_plan(random_table(rng)))[0].name)
        except UsageError:
            continue
    cut = make_plan({"noise_multiplier": 1.0, "sampling_rate": 0.1, "records": 100, "batch_limit": 20})
    assert reached | {find(cut)[0].name} == {row.name for row in COMBINATIONS}


@pytest.mark.parametrize(
    ("table", "nearest"),
    [
        ({"mechanism": "tree", "view": "server_sees_each_update"}, "a tree over the steps"),
        ({"mechanism": "laplace", "clip": "batch"}, "Laplace noise, every step"),
        ({"batch_limit": 10, "records": 100, "sampling_rate": 0.1, "mechanism": "laplace"}, "Laplace noise"),
        (
            {"batch_limit": 10, "records": 100, "sampling_rate": 0.1, "unit": "user", "records_per_user": 3},
            "a user's records",
        ),
        ({"clip": "batch", "unit": "user", "records_per_user": 3, "sampling_rate": 0.1}, "clip per batch"),
        (
            {"clip": "microbatch", "sampling": "with_replacement", "sampling_rate": 0.1, "records": 100},
            "clip per microbatch",
        ),
    ],
)
def test_what_no_theorem_covers_is_refused_by_name(table: dict[str, Any], nearest: str) -> None:
    with pytest.raises(UsageError, match="No theorem here covers this plan") as caught:
        account(make_plan({"noise_multiplier": 1.0, **table}))
    assert f"The nearest valid combination is “{nearest}" in str(caught.value)
    assert "instead of" in str(caught.value)
