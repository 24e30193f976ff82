"""Own loss distributions against quadrature in two dimensions and against the library's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from scipy import stats

from gradleak.privacy.accounting.accountant import account, pld_curve
from gradleak.privacy.accounting.loss_distributions import LEAST_DELTA
from gradleak.privacy.plan.file import make_plan
from gradleak.privacy.plan.views import resolve

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("relation", ["zero_out", "replace_one"])
def test_two_steps_with_fixed_batches(relation: str) -> None:
    """All others at -1: δ at the printed ε by a sum over a plane, at most the plan's; close to it for zero-out, whose pair is that
    of a data set.
    """
    q, z, delta = 0.3, 1.0, 1e-3
    epsilon = account(
        make_plan(
            {
                "noise_multiplier": z,
                "steps": 2,
                "sampling": "fixed",
                "sampling_rate": q,
                "relation": relation,
                "delta": delta,
            }
        )
    ).epsilon
    x = np.linspace(-9, 9, 1801)
    held = (1 - q) * stats.norm.pdf(x, -1, z) + q * stats.norm.pdf(x, 1, z)
    other = (1 - q) * stats.norm.pdf(x, -1, z) + q * stats.norm.pdf(x, 0.0 if relation == "zero_out" else -1.0, z)
    excess = np.maximum(np.outer(held, held) - math.exp(epsilon) * np.outer(other, other), 0.0)
    reached = float(excess.sum()) * (x[1] - x[0]) ** 2
    assert 0.8 * delta <= reached <= delta * (1 + 1e-4)


def test_a_users_records_as_the_library_has_them() -> None:
    plan = make_plan(
        {
            "noise_multiplier": 2.0,
            "steps": 5,
            "sampling_rate": 0.05,
            "sampled": "records",
            "unit": "user",
            "records_per_user": 3,
        }
    )
    weights = [float(stats.binom.pmf(m, 3, 0.05)) for m in range(4)]
    accountant = PLDAccountant(value_discretization_interval=5e-3)
    accountant.compose(dp_event.MixtureOfGaussiansDpEvent(2.0, [0.0, 1.0, 2.0, 3.0], weights), 5)
    assert account(plan).epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=2e-2)


def test_below_its_least_delta_a_distribution_says_nothing() -> None:
    valid = pld_curve(
        resolve(make_plan({"noise_multiplier": 1.0, "steps": 10, "sampling_rate": 0.1, "sampled": "records"}))
    )
    assert valid is not None
    assert math.isinf(valid.epsilon(LEAST_DELTA / 2)) and math.isfinite(valid.epsilon(LEAST_DELTA * 2))
