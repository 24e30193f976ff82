"""Whole tables of other accountants: Poisson steps (A5 of the project's notes), trees (A8), mixtures and cut batches (A9).

The numbers of A5 are those of Microsoft's PRV accountant as kept in the tests of meta-pytorch/opacus 1.6; the others stand in the
tests of dp-accounting 0.6. Where both are Google's code, a second derivation stands beside the number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy import stats

from gradleak.core.errors import UsageError
from gradleak.privacy.accounting.accountant import account
from gradleak.privacy.accounting.events import describe
from gradleak.privacy.plan.file import make_plan
from gradleak.privacy.plan.plan import Phase, Plan
from gradleak.privacy.plan.views import nodes, resolve

pytestmark = pytest.mark.oracle

NOISE = (0.8, 1.5, 2.0, 3.0)
PRV = {
    (0.001, 100): (0.27040, 0.03937, 0.02910, 0.02152),
    (0.05, 100): (6.74105, 1.95385, 1.28364, 0.76793),
    (0.2, 100): (24.33366, 8.49898, 5.67206, 3.38122),
    (0.001, 1000): (0.47777, 0.09982, 0.07122, 0.04762),
    (0.05, 1000): (19.52584, 6.20997, 4.17280, 2.52757),
    (0.001, 20000): (1.29601, 0.43701, 0.30584, 0.19403),
    (0.05, 20000): (140.65521, 38.30662, 24.42172, 13.96111),
    (0.001, 50000): (2.03451, 0.70422, 0.49135, 0.30969),
    (0.05, 50000): (291.38433, 73.19018, 45.23700, 24.94201),
    (0.001, 100000): (2.92462, 1.01529, 0.70672, 0.44367),
}
"""(sampling rate, steps) → upper end of ε at δ = 1e-6 for the four noise multipliers; its error bound is 0.01."""


@pytest.mark.parametrize(
    ("rate", "steps", "noise_multiplier", "upper"),
    [(q, n, z, upper) for (q, n), row in PRV.items() for z, upper in zip(NOISE, row, strict=True)],
)
def test_a5_every_row_of_the_prv_table(rate: float, steps: int, noise_multiplier: float, upper: float) -> None:
    """Theirs is an estimate plus 0.01, ours is rounded upward by less: below it, by at most the notes' 0.0144."""
    found = account(
        make_plan({"noise_multiplier": noise_multiplier, "sampling_rate": rate, "steps": steps, "delta": 1e-6})
    )
    assert found.method == "pld"
    assert upper - 0.0144 <= found.epsilon <= upper
    assert found.rdp is not None and found.rdp > found.epsilon


def tree(noise_multiplier: float, *leaves: int, **kwargs: Any) -> Plan:
    phases = tuple(Phase(noise_multiplier=noise_multiplier, steps=n) for n in leaves)
    return Plan(phases=phases, mechanism="tree", delta=1e-6, **kwargs)


@pytest.mark.parametrize(("noise_multiplier", "published", "rdp"), [(1.13, 19.74, 18.71), (8.83, 2.04, 1.773)])
def test_a8_a_tree_over_1600_steps(noise_multiplier: float, published: float, rdp: float) -> None:
    """As one Gaussian release of all nodes it is exact; Rényi accounting of dp-accounting's own event says the same as ours."""
    found = account(tree(noise_multiplier, 1600))
    assert found.method == "exact"
    assert found.rdp == pytest.approx(rdp, abs=5e-3)
    theirs = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    theirs.compose(dp_event.SingleEpochTreeAggregationDpEvent(noise_multiplier, 1600))
    assert found.rdp == pytest.approx(theirs.get_epsilon(1e-6), rel=1e-6)
    assert found.epsilon < found.rdp < published


@pytest.mark.parametrize("leaves", [1, 2, 3, 7, 8, 13, 64, 100])
def test_nodes_of_a_tree_are_those_of_a_tree_that_is_built(leaves: int) -> None:
    """Every node is a complete block of 2^k leaves; counts the blocks around each leaf."""
    blocks = [(i, i + 2**k) for k in range(8) for i in range(0, leaves, 2**k) if i + 2**k <= leaves]
    assert nodes(leaves) == max(sum(low <= leaf < high for low, high in blocks) for leaf in range(leaves))


def test_trees_compose_and_claim_no_sampling() -> None:
    four, one = account(tree(2.0, 400, 400, 400, 400)), account(tree(2.0, 400))
    mu = 2 * math.sqrt(nodes(400)) / 2.0
    assert four.epsilon == pytest.approx(
        account(Plan(phases=(Phase(noise_multiplier=1 / mu),), delta=1e-6)).epsilon, rel=1e-9
    )
    assert one.epsilon < four.epsilon
    assert four.basis.relation.startswith("zero-out") and "4 trees over 1600 steps" in four.basis.composition
    with pytest.raises(UsageError, match="tree"):
        tree(2.0, 400, sampling="poisson", sampling_rate=0.1)


@pytest.mark.slow
def test_a9_a_composite_of_mixtures_of_gaussians() -> None:
    """The engine of user-level accounting; anchors the version that is installed."""
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(dp_event.MixtureOfGaussiansDpEvent(1.0, [0.0, 1.0, 2.0], [0.2, 0.6, 0.2]), 3)
    accountant.compose(dp_event.MixtureOfGaussiansDpEvent(2.0, [0.0, 2.0, 3.0], [0.33, 0.34, 0.33]), 2)
    assert accountant.get_epsilon(1e-6) == pytest.approx(17.193115, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("z", "q", "k"), [(1.0, 0.1, 4)])
def test_a_user_in_one_step_by_quadrature(z: float, q: float, k: int) -> None:
    """δ at our ε is the integral of (p - e^ε·p')₊ in the worse direction, p the binomial mixture, p' the noise alone."""
    epsilon = account(
        Plan(
            phases=(Phase(noise_multiplier=z),),
            sampling="poisson",
            sampling_rate=q,
            unit="user",
            records_per_user=k,
            delta=1e-4,
        )
    ).epsilon
    x = np.linspace(-14 * z, k + 14 * z, 200_001)
    absent = stats.norm.pdf(x, 0, z)
    present = stats.binom.pmf(np.arange(k + 1), k, q) @ stats.norm.pdf(x, np.arange(k + 1)[:, None], z)
    found = [
        np.trapezoid(np.maximum(0.0, p - math.exp(epsilon) * other), x)
        for p, other in ((present, absent), (absent, present))
    ]
    assert 0.99e-4 <= max(found) <= 1e-4 * (1 + 1e-6)


def cut(records: int, **kwargs: Any) -> Plan:
    settings: dict[str, Any] = {"sampling_rate": 0.5, "batch_limit": 2, "delta": 1e-6, **kwargs}
    phases = (Phase(noise_multiplier=settings.pop("noise_multiplier", 1.0), steps=settings.pop("steps", 1)),)
    return Plan(phases=phases, sampling="poisson", records=records, **settings)


def test_a9_a_composite_of_cut_poisson_batches() -> None:
    accountant = PLDAccountant()
    for plan, times in ((cut(4), 3), (cut(3), 2)):
        event = describe(resolve(plan), "pld")
        assert event is not None
        accountant.compose(event, times)
    assert accountant.get_epsilon(1e-6) == pytest.approx(17.904330, abs=1e-6)


def test_a_cut_batch_costs_what_pushing_another_out_costs() -> None:
    """Rarely cut is Poisson; often cut lies above it; and neither is below what one known data set already loses."""
    poisson = account(make_plan({"noise_multiplier": 1.0, "sampling_rate": 0.01, "steps": 1000, "delta": 1e-6}))
    loose, tight = (account(cut(10_000, sampling_rate=0.01, steps=1000, batch_limit=n)) for n in (200, 110))
    assert loose.epsilon == pytest.approx(poisson.epsilon, rel=1e-3)
    assert tight.epsilon > 2 * poisson.epsilon
    assert any("push another one out" in note for note in tight.notes)
    with pytest.raises(UsageError, match="records"):
        Plan(phases=(Phase(noise_multiplier=1.0),), sampling="poisson", sampling_rate=0.1, batch_limit=3)


def test_cut_batches_against_a_simulation() -> None:
    """One step, three records of value ±1, a limit of two: the largest δ over all tests of the sum is below the claimed one.

    Present or absent, the others at -1: the exact law of the sum is a small mixture, so δ is an integral.
    """
    plan = cut(3, noise_multiplier=1.5, delta=1e-3)
    epsilon = account(plan).epsilon

    def law(present: bool) -> dict[int, float]:
        """Sum of the batch → probability; the target counts +1 if present and zero if not, the others -1."""
        found: dict[int, float] = {}
        for bits in range(8):
            drawn = [i for i in range(3) if bits >> i & 1]
            kept = [drawn] if len(drawn) < 3 else [[0, 1], [0, 2], [1, 2]]
            for batch in kept:
                total = sum((1 if present else 0) if i == 0 else -1 for i in batch)
                found[total] = found.get(total, 0.0) + 1 / 8 / len(kept)
        return found

    x = np.linspace(-12, 12, 40_001)
    here, gone = (sum(w * stats.norm.pdf(x, m, 1.5) for m, w in law(present).items()) for present in (True, False))
    for p, other in ((here, gone), (gone, here)):
        assert np.trapezoid(np.maximum(0.0, p - math.exp(epsilon) * other), x) <= 1e-3
