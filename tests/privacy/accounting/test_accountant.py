"""The accountant against known values of other tools, closed forms, and second derivations. Numbers named A1–A11 are those of the
project's notes; each comes from another library's tests or tables.
"""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak.privacy.accounting import closed_forms, gaussian, lower_bounds
from gradleak.privacy.accounting.accountant import account, curve, pld_curve, rdp_curve, success
from gradleak.privacy.accounting.budget import equivalent_mu
from gradleak.privacy.accounting.events import describe
from gradleak.privacy.goals.calibrate import calibrate
from gradleak.privacy.goals.goals import BitsAtMost, EpsilonAtMost, SpanDead, SuccessAtMost
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


def test_a3_delta_of_three_sampled_steps() -> None:
    from dp_accounting.pld import PLDAccountant

    event = describe(resolve(plan(0.5, 3, sampling_rate=0.2)), "pld")
    assert event is not None
    assert PLDAccountant().compose(event).get_delta(1.0) == pytest.approx(0.15594, abs=1e-3)


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


def test_a6_calibration() -> None:
    of = plan(1.0, 512, sampling_rate=0.1, delta=1e-6)
    z = calibrate(of, EpsilonAtMost(epsilon=1.0))
    assert z == pytest.approx(9.66, abs=5e-3)
    assert account(plan(z, 512, sampling_rate=0.1, delta=1e-6)).epsilon <= 1.0


@pytest.mark.parametrize("order", [1.5, 2.0, 2.5, 5.0, 40.0])
@pytest.mark.parametrize(("rate", "z"), [(0.01, 2.5), (0.2, 0.7), (0.5, 1.0)])
def test_poisson_divergence_is_that_of_thirty_digits(order: float, rate: float, z: float) -> None:
    with mpmath.workdps(30):
        q, s, a = mpmath.mpf(rate), mpmath.mpf(z), mpmath.mpf(order)

        def integrand(x: Any) -> Any:
            return mpmath.npdf(x, 0, s) * ((1 - q) + q * mpmath.exp((2 * x - 1) / (2 * s * s))) ** a

        points = sorted({-12 * z, -2 * z, 0, 1, order - 2 * z, order, order + 2 * z, order + 12 * z})
        exact = float(mpmath.log(mpmath.quad(integrand, points)) / (a - 1))
    assert closed_forms.poisson_gaussian_divergence(order, rate, z) == pytest.approx(exact, rel=1e-8)


def test_a7_divergences_of_dp_accounting() -> None:
    """Equal at the whole order; at the others dp-accounting's value is an upper bound of the integral."""
    theirs = {1.5: 6.70580e-4, 2.5: 1.08549e-3, 5.0: 2.18076e-3}
    ours = {order: 50 * closed_forms.poisson_gaussian_divergence(order, 0.01, 2.5) for order in theirs}
    assert ours[5.0] == pytest.approx(theirs[5.0], rel=1e-5)
    assert all(0.95 * theirs[order] <= ours[order] <= theirs[order] * (1 + 1e-5) for order in theirs)


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
        sampling="poisson",
        rate=1.0,
        group=1,
        relation="add_or_remove",
    )
    found = pld_curve(release)
    assert found is not None
    assert found.epsilon(1e-5) == pytest.approx(account(plan(2.0, 7)).epsilon, rel=2e-4)


def test_poisson_replace_one() -> None:
    assert account(plan(1.0, 1000, sampling_rate=0.01, relation="replace_one")).epsilon == pytest.approx(
        2.843, abs=2e-3
    )


def test_the_view_rule() -> None:
    """q = .01, z = 1, T = 1000: 1.83 for the final model, 17.86 for a server that sees ten updates, 4.38 for one."""
    shared = {"sampling_rate": 0.01, "sampled": "clients", "clip": "update"}
    assert account(plan(1.0, 1000, **shared)).epsilon == pytest.approx(1.828, abs=1e-3)
    seen = account(plan(1.0, 1000, view="server_sees_each_update", **shared))
    assert seen.epsilon == pytest.approx(17.86, abs=5e-3) and seen.method == "exact"
    assert "10 full releases" in seen.notes[0]
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


def test_shuffle_lower_bound_against_a_simulation() -> None:
    """Draws the pair itself: the bound's event happens as often as the formula says."""
    import numpy as np

    z, batches, c, n = 0.8, 20, 2.4, 200_000
    rng = np.random.default_rng(0)
    noise = z * rng.normal(size=(n, batches))
    rates = []
    for height in (2.0, 1.0):
        at = noise.copy()
        at[:, 0] += height
        rates.append(float((at.max(1) > c).mean()))
    from scipy.stats import norm

    for rate, height in zip(rates, (2.0, 1.0), strict=True):
        exact = 1 - norm.cdf((c - height) / z) * norm.cdf(c / z) ** (batches - 1)
        # Five standard deviations: a false alarm in two million.
        assert abs(rate - exact) < 5 * math.sqrt(exact * (1 - exact) / n)
    assert lower_bounds.shuffle_delta(0.5, z, batches) >= rates[0] - math.exp(0.5) * rates[1] - 0.01


def test_a11_fixed_batches_under_substitution() -> None:
    """15.25 is the rounded-up loss at z/2; the certified lower bound is rounded down, and the guarantee lies above both.

    Given in units of C, dp-accounting's RDP of sampling without replacement would say 1.98: below what is certainly lost.
    """
    found = account(plan(0.8, 10_000, sampling="fixed", sampling_rate=0.001, relation="replace_one", delta=1e-6))
    assert found.lower is not None and 14.8 <= found.lower <= 15.2515
    assert pld(plan(0.4, 10_000, sampling_rate=0.001, delta=1e-6)) == pytest.approx(15.25, abs=5e-3)
    assert found.poisson == pytest.approx(0.95, abs=0.015)
    assert found.epsilon == pytest.approx(22.78, abs=0.01)


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


@pytest.mark.parametrize(
    ("goal", "multiplier"),
    [
        (EpsilonAtMost(epsilon=1.0), 3.731),
        (EpsilonAtMost(epsilon=8.0), 0.600),
        (SuccessAtMost(probability=0.5, candidates=50257), 0.243),
        (SuccessAtMost(probability=0.01, candidates=50257), 0.561),
        (SuccessAtMost(probability=0.1, candidates=256), 0.725),
        (SpanDead(columns=768), 0.0704),
        (SpanDead(columns=768, tokens=16, share=0.1), 0.00557),
        (SpanDead(columns=3 * 4096, tokens=16, share=0.1), 0.00287),
    ],
)
def test_goals_of_one_release(goal: Any, multiplier: float) -> None:
    """The noise multipliers of the notes' frontier, one release."""
    assert calibrate(plan(1.0), goal) == pytest.approx(multiplier, rel=2e-3)
    assert calibrate(plan(7.0), goal) * 7.0 == pytest.approx(multiplier, rel=2e-3)


def test_leaked_bits_bound_lies_above_the_measured_bits() -> None:
    """Notes, 512 sentences: 6.24, 2.63, .67 bits at z = .3, .5, 1."""
    for z, measured in ((0.3, 6.24), (0.5, 2.63), (1.0, 0.67)):
        assert measured <= closed_forms.leaked_bits([(z, 1)], 1.0) <= 1.3 * measured
    assert calibrate(plan(1.0), BitsAtMost(bits=1.0)) == pytest.approx(1 / math.sqrt(2 * math.log(2)), rel=2e-4)
    assert calibrate(plan(1.0, 100, sampling_rate=0.25), BitsAtMost(bits=1.0)) == pytest.approx(
        math.sqrt(25 / (2 * math.log(2))), rel=2e-4
    )


def test_names_of_other_tools_numbers() -> None:
    assert closed_forms.classical_epsilon(0.5, 1e-5) == pytest.approx(9.69, abs=5e-3)
    assert closed_forms.zcdp_epsilon(0.5, 1e-5) == pytest.approx(5.30, abs=5e-3)
    assert closed_forms.central_limit_epsilon([(0.6, 1000)], 0.001, 1e-6) == pytest.approx(0.494, abs=1e-3)


def test_equivalent_mu() -> None:
    assert equivalent_mu(account(plan(0.7)).epsilon, 1e-5) == pytest.approx(1 / 0.7)


def test_curves_are_cached_by_what_decides_them() -> None:
    assert curve(resolve(plan(1.0, 10, sampling_rate=0.1))) is curve(
        resolve(plan(1.0, 10, sampling_rate=0.1, delta=1e-7))
    )
