"""The accountant against known values of other tools, closed forms, and second derivations. Numbers named A1–A11 are those of the
project's notes; each comes from another library's tests or tables.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak.privacy.accounting import closed_forms, gaussian
from gradleak.privacy.accounting.accountant import account, curves, pld_curve, rdp_curve, success
from gradleak.privacy.plan.plan import Phase, Plan
from gradleak.privacy.plan.views import Release, resolve

pytestmark = pytest.mark.oracle


def plan(noise_multiplier: float, steps: int = 1, **kwargs: Any) -> Plan:
    if "sampling_rate" in kwargs:
        kwargs.setdefault("sampling", "poisson")
    return Plan(phases=(Phase(noise_multiplier=noise_multiplier, steps=steps),), **kwargs)


def pld(of: Plan) -> float:
    found = pld_curve(resolve(of))
    assert found is not None
    return found.epsilon(of.delta)


def rdp(of: Plan) -> float:
    found = rdp_curve(resolve(of))
    assert found is not None
    return found.epsilon(of.delta)


def test_a1_one_gaussian_release() -> None:
    assert account(plan(1.0)).epsilon == pytest.approx(4.377178, abs=1e-5)
    assert closed_forms.gaussian_multiplier(1.0, 1e-5) == pytest.approx(3.730632, abs=1e-5)


def test_a2_a_gaussian_composed_three_times() -> None:
    """z = √3 in each of three steps is μ = 1."""
    of = plan(math.sqrt(3), 3)
    assert account(of).epsilon == pytest.approx(account(plan(1.0)).epsilon, rel=1e-9)
    assert gaussian.delta(1.0, 1.0) == pytest.approx(0.126936, abs=1e-6)
    assert success(of, 0.1) == pytest.approx(0.38914, abs=1e-5)


def test_a4_the_anchor_of_opacus() -> None:
    of = plan(1.5, 2250, sampling_rate=0.04)
    assert rdp(of) == pytest.approx(7.32911, abs=1e-3)
    assert 6.75 <= account(of).epsilon <= 6.78


@pytest.mark.parametrize(
    ("noise_multiplier", "rate", "steps", "delta", "epsilon", "tolerance"),
    [
        (0.8, 0.05, 1000, 1e-6, 19.526, 0.0145),
        (1.0, 0.01, 1000, 1e-5, 1.828, 1e-3),
        (0.6, 0.01, 1000, 1e-5, 7.434, 1e-3),
        (1.0, 0.2, 500, 1e-5, 38.17, 1e-2),
        (0.5, 0.05, 2000, 1e-6, 100.7, 0.05),
        (3.0, 0.1, 512, 1e-6, 3.77, 5e-3),
        (1.3, 256 / 60000, 15 * 234, 1e-5, 0.864, 5e-3),
        (1.1, 256 / 60000, 60 * 234, 1e-5, 2.382, 5e-3),
        (0.6, 0.001, 1000, 1e-6, 2.107, 2e-3),
    ],
)
def test_a5_a6_a10_tables_of_others(
    noise_multiplier: float, rate: float, steps: int, delta: float, epsilon: float, tolerance: float
) -> None:
    found = account(plan(noise_multiplier, steps, sampling_rate=rate, delta=delta))
    assert found.epsilon == pytest.approx(epsilon, abs=tolerance)
    assert found.rdp is not None and found.rdp >= found.epsilon


@pytest.mark.parametrize(("noise_multiplier", "rate", "steps"), [(1.0, 0.01, 1000), (1.5, 0.04, 2250), (4.0, 0.5, 30)])
def test_own_renyi_epsilon_beside_that_of_dp_accounting(noise_multiplier: float, rate: float, steps: int) -> None:
    orders = closed_forms.ORDERS
    divergences = tuple(
        steps * closed_forms.poisson_gaussian_divergence(order, rate, noise_multiplier) for order in orders
    )
    own = closed_forms.renyi_epsilon(orders, divergences, 1e-5)
    of = plan(noise_multiplier, steps, sampling_rate=rate)
    assert own == pytest.approx(rdp(of), rel=5e-3)
    assert own >= account(of).epsilon


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("steps", [1, 10, 300])
@pytest.mark.parametrize("relation", ["add_or_remove", "zero_out", "replace_one"])
def test_pld_and_rdp_mean_the_same_mechanism(noise_multiplier: float, steps: int, relation: str) -> None:
    """dp-accounting's two accountants read a Gaussian event's multiplier in different units under replace-one."""
    of = plan(noise_multiplier, steps, relation=relation)
    exact = account(of)
    assert exact.method == "exact" and exact.rdp is not None
    # Rounded upward in pieces that grow with ε; no report needs the fourth digit of an ε of hundreds.
    # Above a hundred dp-accounting rounds up by 0.1 %, whatever the width of its pieces.
    assert exact.epsilon * (1 - 1e-6) <= pld(of) <= exact.epsilon * (1 + (2e-4 if exact.epsilon < 100 else 2e-3))
    assert exact.epsilon <= exact.rdp <= 1.35 * exact.epsilon
    distance = 2 if relation == "replace_one" else 1
    rho = steps * (distance / noise_multiplier) ** 2 / 2
    assert closed_forms.zcdp_epsilon(rho, 1e-5) >= exact.rdp * (1 - 1e-2)


def test_a_sampled_rate_of_one_is_no_sampling() -> None:
    release = Release(
        mechanism="gaussian",
        phases=(Phase(noise_multiplier=2.0, steps=7),),
        law="poisson",
        rate=1.0,
    )
    found = pld_curve(release)
    assert found is not None
    assert found.epsilon(1e-5) == pytest.approx(account(plan(2.0, 7)).epsilon, rel=2e-4)


def test_poisson_replace_one() -> None:
    assert account(plan(1.0, 1000, sampling_rate=0.01, relation="replace_one")).epsilon == pytest.approx(
        2.843, abs=2e-3
    )


def test_the_view_rule() -> None:
    """q = .01, z = 1, T = 1000: 1.83 for the final model, 23.39 for a server that sees who takes part, 4.38 for one update."""
    shared = {"sampling_rate": 0.01, "sampled": "clients", "clip": "update"}
    assert account(plan(1.0, 1000, **shared)).epsilon == pytest.approx(1.828, abs=1e-3)
    seen = account(plan(1.0, 1000, view="server_sees_each_update", **shared))
    assert seen.epsilon == pytest.approx(23.391, abs=1e-3) and seen.method == "known draws"
    ten = account(plan(1.0, 1000, view="server_sees_each_update", participations=10, **shared))
    assert ten.epsilon == pytest.approx(17.857, abs=1e-3) and "10 full releases" in ten.notes[0]
    once = account(plan(1.0, 1000, view="server_sees_each_update", participations=1, **shared))
    assert once.epsilon == pytest.approx(4.377, abs=1e-3)
    summed = account(plan(0.1, 1000, view="secure_aggregation", clients=100, participations=1, **shared))
    assert summed.epsilon == pytest.approx(4.377, abs=1e-3)
    inside = account(plan(1.0, 1000, view="server_sees_each_update", sampling_rate=0.01, sampled="records"))
    assert inside.epsilon == pytest.approx(1.828, abs=1e-3)


def test_the_worst_participations_are_those_with_least_noise() -> None:
    of = Plan(
        phases=(Phase(noise_multiplier=4.0, steps=50), Phase(noise_multiplier=1.0, steps=2)),
        sampling="poisson",
        sampling_rate=0.1,
        sampled="clients",
        view="server_sees_each_update",
        participations=3,
    )
    assert account(of).epsilon == pytest.approx(gaussian.epsilon(1 / math.sqrt(2 + 1 / 16), 1e-5))


@pytest.mark.parametrize(("k", "epsilon"), [(1, 1.83), (4, 8.90), (16, 52.7)])
def test_user_level(k: int, epsilon: float) -> None:
    of = plan(1.0, 1000, sampling_rate=0.01, unit="user", records_per_user=k)
    assert account(of).epsilon == pytest.approx(epsilon, rel=3e-3)


def test_a_group_without_sampling_divides_the_multiplier() -> None:
    of = plan(4.0, unit="user", records_per_user=4)
    assert account(of).epsilon == pytest.approx(account(plan(1.0)).epsilon)
    assert account(plan(1.0, unit="user", records_per_user=9, clip="update")).epsilon == account(plan(1.0)).epsilon


def test_per_tensor_clip_counts_the_root_of_the_tensors() -> None:
    assert account(plan(3.0, clip="tensor", tensors=9)).epsilon == pytest.approx(account(plan(1.0)).epsilon)


def test_the_table_of_fed_cdp() -> None:
    """σ = 6, q = .01, T = 10⁴: PLD .601, RDP .659; with the shipped three tensors clipped each, 1.22."""
    of = plan(6.0, 10_000, sampling_rate=0.01)
    found = account(of)
    assert found.epsilon == pytest.approx(0.601, abs=1e-3)
    assert found.rdp == pytest.approx(0.659, abs=2e-3)
    shipped = account(plan(6.0, 10_000, sampling_rate=0.01, clip="tensor", tensors=3))
    assert shipped.rdp == pytest.approx(1.22, abs=1e-2)


@pytest.mark.parametrize(
    ("noise_multiplier", "batches", "lower"),
    [
        (0.4, 100, 13.2),
        (0.5, 1000, 10.0),
        (0.8, 10_000, 3.836),
        (1.0, 100, 4.06),
        (1.0, 1000, 2.88),
        (1.0, 10_000, 1.13),
    ],
)
def test_a11_shuffled_epochs(noise_multiplier: float, batches: int, lower: float) -> None:
    found = account(plan(noise_multiplier, batches, sampling="shuffle", sampling_rate=1 / batches))
    assert found.lower == pytest.approx(lower, abs=0.05 if lower > 5 else 6e-3)
    assert found.poisson is not None and found.poisson < found.lower <= found.epsilon
    assert found.epsilon == pytest.approx(account(plan(noise_multiplier)).epsilon)
    assert found.basis.relation.startswith("zero-out")


def test_a11_fixed_batches_under_substitution() -> None:
    """15.25 is the rounded-up loss at z/2; the certified lower bound is rounded down, and the guarantee lies above both.

    Given in units of C, dp-accounting's RDP of sampling without replacement would say 1.98: below what is certainly lost.
    """
    found = account(plan(0.8, 10_000, sampling="fixed", sampling_rate=0.001, relation="replace_one", delta=1e-6))
    assert found.lower is not None and 14.8 <= found.lower <= 15.2515
    assert pld(plan(0.4, 10_000, sampling_rate=0.001, delta=1e-6)) == pytest.approx(15.25, abs=5e-3)
    assert found.poisson == pytest.approx(0.95, abs=0.015)
    # Rényi accounting without replacement says 22.78 in dp-accounting.
    assert found.lower < found.epsilon == pytest.approx(16.319, abs=0.01)


def test_laplace() -> None:
    assert account(plan(0.5, mechanism="laplace")).epsilon == 2.0
    assert success(plan(1.0, mechanism="laplace"), 0.3) == pytest.approx(0.69343, abs=1e-5)
    assert account(plan(0.5, mechanism="laplace", relation="replace_one")).epsilon == 4.0
    many = account(plan(5.0, 100, mechanism="laplace"))
    assert many.method == "pld" and many.epsilon < 20.0
    sampled = account(plan(1.0, 100, mechanism="laplace", sampling_rate=0.01))
    assert sampled.epsilon < account(plan(1.0, 100, mechanism="laplace")).epsilon


def test_a_schedule_is_composed_step_by_step() -> None:
    """A public schedule: Gaussian releases add up exactly, and a long sampled one is never rounded in its favor."""
    of = Plan(phases=tuple(Phase(noise_multiplier=z, steps=n) for z, n in ((2.0, 3), (4.0, 5))))
    mu = math.sqrt(3 / 4 + 5 / 16)
    assert account(of).epsilon == pytest.approx(gaussian.epsilon(1 / mu, 1e-5))
    levels = [15 - 10.15 * t / 100 for t in range(100)]
    smooth = Plan(
        phases=tuple(Phase(noise_multiplier=z, steps=100) for z in levels), sampling="poisson", sampling_rate=0.01
    )
    found = account(smooth)
    assert found.rdp == pytest.approx(0.450, abs=0.015)
    assert 0.36 < found.epsilon < 0.451


@settings(max_examples=8, deadline=None)
@given(st.floats(0.4, 5.0), st.integers(1, 200), st.floats(0.001, 0.5))
def test_more_noise_fewer_steps_and_rarer_sampling_never_cost_more(z: float, steps: int, rate: float) -> None:
    base = account(plan(z, steps, sampling_rate=rate)).epsilon
    assert account(plan(1.2 * z, steps, sampling_rate=rate)).epsilon <= base * 1.001 + 1e-5
    assert account(plan(z, steps + 50, sampling_rate=rate)).epsilon >= base * 0.999 - 1e-5
    assert account(plan(z, steps, sampling_rate=rate / 2)).epsilon <= base * 1.001 + 1e-5
    assert account(plan(z, steps)).epsilon >= base * 0.999 - 1e-5


@pytest.mark.parametrize(("kappa", "value"), [(0.001, 0.0476), (0.01, 0.1804), (0.1, 0.5473)])
def test_success_on_a_sampled_plan(kappa: float, value: float) -> None:
    assert success(plan(1.5, 2250, sampling_rate=0.04), kappa) == pytest.approx(value, abs=1e-4)


def test_success_does_not_depend_on_the_relation() -> None:
    assert success(plan(1.0, relation="replace_one"), 0.1) == success(plan(1.0), 0.1)
    assert success(plan(1.0, clip="none"), 0.1) == 1.0


def test_curves_are_cached_by_what_decides_them() -> None:
    assert curves(resolve(plan(1.0, 10, sampling_rate=0.1))) is curves(
        resolve(plan(1.0, 10, sampling_rate=0.1, delta=1e-7))
    )
