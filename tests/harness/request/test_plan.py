"""Plans round-trip, and only what changes results changes the fingerprint."""

from __future__ import annotations

import pytest

from gradleak.core.errors import DataError
from gradleak.harness.request.plan import Call, Cell, Plan

pytestmark = pytest.mark.contract


def _plan(**changes: object) -> Plan:
    plain = {
        "model": "random:bert",
        "share": {"share": "gradient"},
        "threat": "honest_server",
        "attacks": (Call(type="tag"), Call(type="dlg", args={"iterations": 3})),
        "defenses": (
            (),
            (Call(type="clip", args={"max_norm": 1.0}), Call(type="gaussian", args={"noise_multiplier": 0.5})),
        ),
        "repeats": 2,
    }
    return Plan(**(plain | changes))


def test_plans_round_trip_and_only_what_changes_results_changes_the_fingerprint() -> None:
    plan = _plan()
    assert Plan.from_json(plan.to_json()) == plan
    assert (
        plan.model_copy(update={"command": "x", "available": {"attacks": ("tag",)}}).fingerprint() == plan.fingerprint()
    )
    changes = ({"seed": 1}, {"repeats": 3}, {"threat": "eavesdropper"}, {"max_length": 8}, {"budget_seconds": 1.0})
    assert len({plan.fingerprint(), *(_plan(**change).fingerprint() for change in changes)}) == 1 + len(changes)


@pytest.mark.parametrize("text", ["", "[]", '{"model": "x", "surprise": 1}', '{"model": 3}'])
def test_a_plan_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        Plan.from_json(text)


def test_cells_come_in_order_with_distinct_stable_names() -> None:
    cells = list(_plan().cells())
    assert len(cells) == _plan().count() == len({cell.id for cell in cells}) == 8
    assert [cell.repeat for cell in cells] == [0] * 4 + [1] * 4
    assert [cell.attack.type for cell in cells[:4]] == ["tag", "dlg", "tag", "dlg"]
    assert Cell(seed=0, repeat=0, defense=(), attack=Call(type="tag")).id == cells[0].id
