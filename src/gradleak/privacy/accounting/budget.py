"""One plan, several readings: the same noise has another ε for each view and relation; a table shows them side by side,
with what each buys. Must not know how it is printed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import get_args

from gradleak.core.errors import UsageError
from gradleak.privacy.accounting import closed_forms
from gradleak.privacy.accounting.accountant import curve
from gradleak.privacy.plan.plan import Plan, Relation, Viewpoint
from gradleak.privacy.plan.views import refusal, resolve


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One row.

    Attributes:
        epsilon: infinite if there is no guarantee. mu: of the Gaussian release with the same ε at the same δ.
        power: the most that any test of "was it there?" detects at one false alarm in a thousand.
    """

    view: Viewpoint
    relation: Relation
    releases: int
    epsilon: float
    mu: float
    power: float


def readings(plan: Plan) -> tuple[Reading, ...]:
    """Every view, under add-or-remove (zero-out where batches have fixed size) and replace-one.

    Readings that no theorem covers are left out. Secure aggregation over one client is no aggregation, so it is left out unless the plan names more.
    """
    relations: tuple[Relation, ...] = ("add_or_remove", "replace_one")
    rows = (
        _reading(replace(plan, view=view, relation=relation))
        for view in get_args(Viewpoint)
        if view != "secure_aggregation" or plan.clients > 1 or plan.view == view
        for relation in relations
    )
    return tuple(row for row in rows if row is not None)


def _reading(plan: Plan) -> Reading | None:
    if refusal(plan) is not None:
        return Reading(
            view=plan.view, relation=plan.relation, releases=plan.steps, epsilon=math.inf, mu=math.inf, power=1.0
        )
    try:
        release = resolve(plan)
    except UsageError:
        # No theorem covers this reading; the plan's own is refused elsewhere.
        return None
    valid = curve(release)
    epsilon = valid.epsilon(plan.delta)
    return Reading(
        view=plan.view,
        relation=release.relation,
        releases=release.steps,
        epsilon=epsilon,
        mu=equivalent_mu(epsilon, plan.delta),
        power=valid.success(1e-3),
    )


def equivalent_mu(epsilon: float, delta: float) -> float:
    """μ of the Gaussian release that has this ε at this δ."""
    if math.isinf(epsilon):
        return math.inf
    return 0.0 if epsilon <= 0 else 1.0 / closed_forms.gaussian_multiplier(epsilon, delta)
