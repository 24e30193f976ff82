"""Random training plans that the table of combinations covers, for tests of the accountant."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradleak.core.errors import UsageError
from gradleak.privacy.accounting.accountant import account
from gradleak.privacy.plan.file import make_plan
from gradleak.privacy.plan.plan import Plan
from gradleak.privacy.plan.views import refusal, resolve
from tests.support.independent_accountant import delta_of, worlds

TOLERANCE = 2e-3
"""Of δ: what the independent accountant's own grid may be off, beside the error that it finds."""

ATOM = 5e-4
"""Relative step past an atom of the loss, about one cell of the grid."""


def random_table(rng: np.random.Generator) -> dict[str, Any]:
    """A plan's table; it may be one that no theorem covers."""
    mechanism = str(rng.choice(["gaussian", "laplace", "tree"], p=[0.8, 0.14, 0.06]))
    steps = int(2 ** rng.uniform(0, 10))
    sampling = (
        "none"
        if mechanism == "tree"
        else str(
            rng.choice(["none", "poisson", "fixed", "shuffle", "with_replacement"], p=[0.12, 0.4, 0.22, 0.14, 0.12])
        )
    )
    rate = 1.0 if sampling == "none" else float(np.exp(rng.uniform(np.log(1e-3), np.log(0.7))))
    records = int(rng.integers(50, 5000))
    if sampling in ("fixed", "with_replacement"):
        rate = max(1, round(rate * records)) / records
    table: dict[str, Any] = {
        "mechanism": mechanism,
        "noise_multiplier": float(np.exp(rng.uniform(np.log(0.5), np.log(12.0)))),
        "steps": steps,
        "sampling": sampling,
        "sampling_rate": rate,
        "sampled": str(rng.choice(["records", "clients"])),
        "clip": str(
            rng.choice(["example", "update", "tensor", "microbatch", "batch"], p=[0.5, 0.22, 0.12, 0.08, 0.08])
        ),
        "relation": str(rng.choice(["add_or_remove", "zero_out", "replace_one"])),
        "view": str(rng.choice(["final_model", "server_sees_each_update", "secure_aggregation"], p=[0.5, 0.3, 0.2])),
        "unit": str(rng.choice(["record", "user"], p=[0.65, 0.35])),
        "records_per_user": int(rng.integers(1, 6)),
        "clients": int(rng.integers(1, 30)),
        "records": records,
        "delta": float(10 ** rng.uniform(-10, -3)),
    }
    if table["clip"] == "tensor":
        table["tensors"] = int(rng.integers(1, 9))
    if mechanism == "gaussian" and rng.random() < 0.1:
        table["count_noise"] = float(rng.uniform(0.5, 20.0))
    if sampling == "shuffle" and rng.random() < 0.5:
        table["last_batch"] = str(rng.choice(["kept", "dropped"]))
    if table["view"] != "final_model" and rng.random() < 0.3:
        table["participations"] = int(rng.integers(1, steps + 1))
    if rng.random() < 0.2 and steps > 1:
        first = int(rng.integers(1, steps))
        z = table.pop("noise_multiplier")
        table |= {"noise_multipliers": [z, z * float(rng.uniform(0.5, 2.0))], "steps": [first, steps - first]}
    return table


def random_plan(rng: np.random.Generator) -> tuple[Plan, int]:
    """A plan that is covered and has a finite ε, and how many tables were drawn for it."""
    for drawn in range(1, 1000):
        try:
            plan = make_plan(random_table(rng))
            resolve(plan)
        except UsageError:
            continue
        if refusal(plan) is None:
            return plan, drawn
    raise AssertionError("no valid plan in a thousand draws")


def largest_delta(plan: Plan, epsilon: float) -> tuple[float, float]:
    """The largest δ at ``epsilon`` of any pair of worlds of the plan, as a share of the plan's δ, and its error likewise."""
    if plan.mechanism == "laplace":
        # The loss has atoms; one at ε itself, which counts for nothing, may be split into the next cell.
        epsilon *= 1 + ATOM
    values = [delta_of(steps, epsilon) for steps in worlds(plan)]
    value, error = max(values)
    return value / plan.delta, error / plan.delta


def understated(plan: Plan) -> tuple[bool, float, float]:
    """Whether some pair of worlds loses more than the printed ε allows; the share of δ and ε."""
    guarantee = account(plan)
    assert guarantee.lower is None or guarantee.lower <= guarantee.epsilon
    share, error = largest_delta(plan, guarantee.epsilon)
    return share - 3 * error > 1 + TOLERANCE, share, guarantee.epsilon
