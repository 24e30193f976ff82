"""No printed ε of a random valid plan is below what a second accountant proves; benchmarks/privacy/random_plans.py does 2,000."""

from __future__ import annotations

import numpy as np
import pytest

from gradleak.privacy.accounting import gaussian
from tests.support.independent_accountant import Step, delta_bracket, delta_of
from tests.support.random_plans import random_plan, understated

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("seed", [7, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (8, 9, 10, 11, 12))])
def test_no_understatement_in_eight_random_plans(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(8):
        plan, _ = random_plan(rng)
        false, share, epsilon = understated(plan)
        assert not false, f"{share:.4f} of δ at ε = {epsilon:.5g}: {plan}"


@pytest.mark.parametrize(("steps", "epsilon"), [(1, 2.0), (40, 9.0), (1000, 60.0)])
def test_the_second_accountant_knows_the_exact_curve(steps: int, epsilon: float) -> None:
    """Gaussian releases: estimate within its own error, bracket around the truth, down to δ of 1e-30 and below."""
    released = [(Step(((1.0, ((1.0, 1.0),), ((1.0, 0.0),)),), 3.0), steps)]
    exact = gaussian.delta(3.0 / steps**0.5, epsilon)
    value, error = delta_of(released, epsilon)
    assert abs(value - exact) <= 3 * error + 1e-4 * exact
    low, high = delta_bracket(released, epsilon)
    assert low < exact < high


def test_the_second_accountant_catches_an_understated_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan whose noise is counted 2 % too high is flagged: the check has teeth."""
    import tests.support.random_plans as module

    plan, _ = random_plan(np.random.default_rng(3))
    honest = module.account
    monkeypatch.setattr(
        module,
        "account",
        lambda of: honest(module.make_plan(_louder(of))),
    )
    assert understated(plan)[0]


def _louder(plan: object) -> dict[str, object]:
    import dataclasses

    fields = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan) if f.name not in ("phases", "claimed")}  # type: ignore[arg-type]
    phases = plan.phases  # type: ignore[attr-defined]
    kept = {
        name: list(value) if isinstance(value, tuple) else value for name, value in fields.items() if value is not None
    }
    return {
        **kept,
        "noise_multipliers": [1.02 * p.noise_multiplier for p in phases],
        "steps": [p.steps for p in phases],
    }
