"""What Opacus, Flower and the Trainer saved, as a plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradleak.core.errors import DataError
from gradleak.privacy.accounting.accountant import account
from gradleak.privacy.lint import lint
from gradleak.privacy.plan.file import make_plan
from gradleak.privacy.plan.saved_states import read_saved_state

pytestmark = pytest.mark.contract


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Any], Path]:
    def write(state: Any) -> Path:
        path = tmp_path / "state.json"
        path.write_text(json.dumps(state), encoding="utf-8")
        return path

    return write


def test_an_opacus_accountant(saved: Callable[[Any], Path]) -> None:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    for _ in range(100):
        accountant.step(noise_multiplier=1.1, sample_rate=0.02)
    plan = make_plan(read_saved_state(saved(accountant.state_dict())))
    assert plan.steps == 100 and plan.sampling == "poisson" and plan.sampling_rate == 0.02
    # PRV states an upper end, 0.01 above its estimate.
    assert account(plan).epsilon == pytest.approx(accountant.get_epsilon(1e-5), abs=0.02)
    assert lint(plan) == ()


def test_an_opacus_accountant_that_saw_nothing(saved: Callable[[Any], Path]) -> None:
    table = read_saved_state(saved({"history": [], "mechanism": "rdp"}))
    plan = make_plan(table | {"noise_multiplier": 1.0, "sampling_rate": 0.01, "steps": 500})
    assert [finding.code for finding in lint(plan)] == ["empty-history"]


def test_a_flower_wrapper(saved: Callable[[Any], Path]) -> None:
    state = {
        "noise_multiplier": 1.0,
        "clipping_norm": 0.5,
        "num_sampled_clients": 20,
        "num_rounds": 30,
        "num_available_clients": 100,
    }
    plan = make_plan(read_saved_state(saved(state)))
    assert plan.clip == "update" and plan.sampling_rate == 0.2 and plan.steps == 30 and plan.view == "final_model"
    assert 0 < account(plan).epsilon < 30
    assert "server-adds-noise" in {f.code for f in lint(make_plan(read_saved_state(saved({**state, "local": True}))))}


def test_a_trainer(saved: Callable[[Any], Path]) -> None:
    table = read_saved_state(saved({"global_step": 30, "max_steps": 30, "num_train_epochs": 3, "train_batch_size": 8}))
    plan = make_plan(table | {"noise_multiplier": 2.0})
    assert plan.sampling == "shuffle" and plan.steps == 30
    assert account(plan).epsilon == pytest.approx(account(make_plan({"noise_multiplier": 2.0, "steps": 3})).epsilon)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ([1, 2], "no state that is known here"),
        ({"weights": 1}, "trainer_state.json"),
        ({"history": 3}, "no list"),
        ({"history": [[1.0, 0.1]]}, "three numbers"),
        ({"num_sampled_clients": 5}, "num_available_clients"),
        ({"global_step": 5, "max_steps": 0}, "max_steps"),
    ],
)
def test_what_is_no_state_is_said(saved: Callable[[Any], Path], state: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_saved_state(saved(state))


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="not a JSON file"):
        read_saved_state(tmp_path / "x.json")
    with pytest.raises(DataError, match="Cannot read"):
        read_saved_state(tmp_path / "missing.json")
