"""Convergence against privacy: the bound holds and says something at every noise level, and ε is the accountant's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gradleak.cli.app import app
from gradleak.core.errors import UsageError
from gradleak.harness.utility.noise_cost import training_cost
from gradleak.privacy.accounting.accountant import account
from gradleak.privacy.plan.plan import Phase, Plan

pytestmark = pytest.mark.oracle

PLAN = Plan(phases=(Phase(noise_multiplier=2.0, steps=300),), sampling="poisson", sampling_rate=0.1, sampled="records")


@pytest.mark.parametrize("seed", [0, 1])
def test_the_bound_is_above_the_measurement_and_not_far(seed: int) -> None:
    """Four is what the bound may be off by on this kind of problem (``test_sgd_bounds``), clipping bias measured."""
    found = training_cost(PLAN, factors=(0.25, 1.0, 8.0), seed=seed)
    for level in found.levels:
        assert level.measured <= level.bound.total <= 4 * level.measured
        assert level.bound.bias > 0 and 0 < level.clipped < 1, "the clip that is suggested is active"
    assert [level.bound.noise for level in found.levels] == sorted(level.bound.noise for level in found.levels)
    assert found.levels[1].epsilon == account(PLAN).epsilon
    assert found.levels[0].epsilon > found.levels[1].epsilon > found.levels[2].epsilon
    assert 0 < found.without_noise < found.levels[2].excess


def test_the_panel_of_a_plan(tmp_path: Path) -> None:
    arguments = ["--noise-multiplier", "2", "--sampling-rate", "0.1", "--steps", "40", "--training"]
    call: Callable[..., Any] = CliRunner().invoke
    result = call(app, ["account", *arguments, "--target-success", "0.1", "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    levels = found["training"]["levels"]
    assert [level["noise_multiplier"] for level in levels] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert found["training"]["plan_multiplier"] == 2.0 and levels[3]["epsilon"] == found["guarantee"]["epsilon"]
    page = (tmp_path / "training.html").read_text(encoding="utf-8")
    assert "the plan" in page and "list of 512" in page and 'polyline class="goal"' in page and "://" not in page
    assert f"{levels[3]['bound']['total']:.3g}" in page
    text = call(app, ["account", *arguments])
    assert "Convergence against privacy" in text.stdout and "excess loss" in text.stdout


@pytest.mark.parametrize(
    "plan", [Plan(phases=(Phase(noise_multiplier=1.0, steps=5001),)), Plan(phases=(Phase(noise_multiplier=0.0),))]
)
def test_plans_that_are_not_trained(plan: Plan) -> None:
    with pytest.raises(UsageError, match="5000 steps"):
        training_cost(plan)
