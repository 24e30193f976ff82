"""Plans round-trip, and only what changes results changes the fingerprint."""

from __future__ import annotations

import pytest

from gradleak.core.errors import DataError
from gradleak.harness.request.plan import Call, Cell, Plan
from tests.support.plans import plan as make_plan

pytestmark = pytest.mark.contract


def test_plans_round_trip_and_only_what_changes_results_changes_the_fingerprint() -> None:
    plan = make_plan()
    assert Plan.from_json(plan.to_json()) == plan
    assert (
        plan.model_copy(update={"command": "x", "available": {"attacks": ("tag",)}}).fingerprint() == plan.fingerprint()
    )
    changes = ({"seed": 1}, {"repeats": 3}, {"threat": "eavesdropper"}, {"max_length": 8}, {"budget_seconds": 1.0})
    assert len({plan.fingerprint(), *(make_plan(**change).fingerprint() for change in changes)}) == 1 + len(changes)


@pytest.mark.parametrize("text", ["", "[]", '{"model": "x", "surprise": 1}', '{"model": 3}'])
def test_a_plan_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        Plan.from_json(text)


def test_cells_come_in_order_with_distinct_stable_names() -> None:
    cells = list(make_plan().cells())
    assert len(cells) == make_plan().count() == len({cell.id for cell in cells}) == 8
    assert [cell.repeat for cell in cells] == [0] * 4 + [1] * 4
    assert [cell.attack.type for cell in cells[:4]] == ["tag", "dlg", "tag", "dlg"]
    assert Cell(seed=0, repeat=0, defense=(), attack=Call(type="tag")).id == cells[0].id
