"""The chain under secret coins: against a decoder that sees every entry, the accountant's curve, and the case without coins."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from gradleak.core.errors import UsageError
from gradleak.privacy import binomial as counts
from gradleak.privacy.accounting.accountant import account, success
from gradleak.privacy.bounds import bayes, bound_chain
from gradleak.privacy.bounds import poisson as sampled
from gradleak.privacy.bounds.candidates import Candidates
from gradleak.privacy.bounds.poisson import Sampling
from gradleak.privacy.plan.plan import Phase, Plan

pytestmark = pytest.mark.oracle


def uneven(count: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, Candidates]:
    gradients = rng.standard_normal(size) + 0.8 * rng.standard_normal((count, size))
    gradients /= np.linalg.norm(gradients, axis=1, keepdims=True) * rng.uniform(1.0, 2.0, (count, 1))
    prior = rng.dirichlet(np.full(count, 2.0))
    return gradients, Candidates(gram=gradients @ gradients.T, prior=prior)


def plan(law: Sampling) -> Plan:
    phases = (Phase(noise_multiplier=law.noise_multiplier, steps=law.releases),)
    return Plan(phases=phases, sampled="records", sampling="poisson", sampling_rate=law.rate)


@pytest.mark.parametrize(
    "law", [Sampling(noise_multiplier=0.3, releases=2, rate=0.4), Sampling(noise_multiplier=0.2, rate=0.1)]
)
def test_k_dimensions_say_what_all_entries_and_all_coins_say(law: Sampling) -> None:
    """A second derivation: noise in every entry, a sum over all patterns of the coins. Four intervals at 99.9 %."""
    rng = np.random.default_rng(3)
    gradients, candidates = uneven(9, 80, rng)
    trials = 4000
    truth = rng.choice(9, size=trials, p=candidates.prior)
    coins = rng.random((trials, law.releases)) < law.rate
    seen = coins[:, :, None] * gradients[truth][:, None] + law.noise_multiplier * rng.standard_normal(
        (trials, law.releases, 80)
    )
    joint = np.zeros((trials, 9))
    for pattern in itertools.product((0, 1), repeat=law.releases):
        means = np.array(pattern)[:, None, None] * gradients  # [T K P]
        squares = ((seen[:, :, None, :] - means) ** 2).sum((1, 3)) - (seen**2).sum((1, 2))[:, None]
        weight = law.rate ** sum(pattern) * (1 - law.rate) ** (law.releases - sum(pattern))
        joint += weight * np.exp(-squares / (2 * law.noise_multiplier**2))
    joint *= candidates.prior
    posterior = joint / joint.sum(1, keepdims=True)
    low, high = counts.interval(int((posterior.argmax(1) == truth).sum()), trials, 0.999)
    found = sampled.optimal(candidates, law, rng, trials=20_000, confidence=0.999)
    assert low <= found.success.high and found.success.low <= high
    pointwise = np.log2(posterior[np.arange(trials), truth] / candidates.prior[truth])
    error = math.hypot(float(pointwise.std() / math.sqrt(trials)), found.bits_error)
    assert found.bits == pytest.approx(float(pointwise.mean()), abs=3.5 * error)


def test_without_coins_it_is_the_plain_chain() -> None:
    rng = np.random.default_rng(0)
    _, candidates = uneven(12, 40, rng)
    law = Sampling(noise_multiplier=0.8, releases=4)
    here = sampled.optimal(candidates, law, rng, trials=20_000, confidence=0.999)
    there = bayes.optimal(candidates, 0.4, rng, confidence=0.999)
    assert here.success.low <= there.success.high and there.success.low <= here.success.high
    assert here.bits == pytest.approx(there.bits, abs=4 * math.hypot(here.bits_error, there.bits_error))
    assert sampled.mechanism_bound(0.1, law) == pytest.approx(float(norm.cdf(norm.ppf(0.1) + 2.5)), abs=1e-12)


@pytest.mark.parametrize(("z", "rate"), [(0.5, 0.1), (1.0, 0.3)])
@pytest.mark.parametrize("kappa", [1 / 512, 0.1])
def test_one_sampled_release_against_the_accountant(z: float, rate: float, kappa: float) -> None:
    """(1-q)κ + q·Φ(Φ⁻¹(κ) + 1/z) is exact; the privacy loss distribution is rounded upward and searched on a grid."""
    law = Sampling(noise_multiplier=z, rate=rate)
    exact = (1 - rate) * kappa + rate * float(norm.cdf(norm.ppf(kappa) + 1 / z))
    assert sampled.mechanism_bound(kappa, law) == pytest.approx(exact, rel=1e-12)
    assert exact <= success(plan(law), kappa) <= exact * 1.01


@pytest.mark.parametrize("releases", [1, 5])
@pytest.mark.parametrize("z", [0.1, 0.5, 2.0])
def test_the_chain_keeps_its_order_under_coins(releases: int, z: float) -> None:
    rng = np.random.default_rng(1)
    _, candidates = uneven(32, 100, rng)
    step = bound_chain.rung(candidates, z, rng, releases=releases, sampling_rate=0.2, trials=5000)
    assert bound_chain.violations(step, {}) == ()
    assert candidates.kappa <= step.instance <= step.mechanism <= step.approximate
    assert step.best.bits <= step.bits_cap + 4 * step.best.bits_error
    assert step.epsilon == account(plan(Sampling(noise_multiplier=z, releases=releases, rate=0.2))).epsilon
    certain = bound_chain.rung(candidates, z, rng, releases=releases, trials=5000)
    assert step.instance < certain.instance + 1e-12 and step.mechanism < certain.mechanism + 1e-12
    assert step.best.success.low <= certain.best.success.high


def test_a_sampled_audit_finds_the_noise() -> None:
    """200 games of 500 with the best decoder of orthogonal records, K = 64, q = .5, z = .3, at 5 %: at most 20 false bounds (99.9 %)."""
    rng = np.random.default_rng(5)
    law = Sampling(noise_multiplier=0.3, rate=0.5)
    best = sampled.optimal(Candidates.uniform(np.eye(64)), law, rng, trials=100_000, confidence=0.99).success.value
    found = [
        sampled.multiplier_at_most(int(h), 500, 1 / 64, releases=1, rate=0.5, significance=0.05)
        for h in rng.binomial(500, best, size=200)
    ]
    assert sum(z < 0.3 for z in found) <= 20
    assert float(np.median(found)) < 0.36, "the bound is of use"
    cap = sampled.mechanism_bound(1 / 64, law)
    close = sampled.multiplier_at_most(round(cap * 10**7), 10**7, 1 / 64, releases=1, rate=0.5, significance=0.5)
    assert close == pytest.approx(0.3, rel=1e-3)
    assert sampled.multiplier_at_most(5, 500, 1 / 64, releases=1, rate=0.5, significance=0.05) == math.inf
    assert sampled.multiplier_at_most(500, 500, 1 / 64, releases=1, rate=0.5, significance=0.05) == 0.0


@pytest.mark.parametrize(
    "arguments",
    [{"noise_multiplier": 0.0}, {"noise_multiplier": 1.0, "rate": 0.0}, {"noise_multiplier": 1.0, "rate": 1.1}],
)
def test_what_cannot_be_sampled(arguments: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        Sampling(**arguments)  # pyright: ignore[reportArgumentType]


def test_next_to_no_noise_is_accounted_for_without_a_giant_grid() -> None:
    """ε of 5e7 cut into pieces of 0.01 would take 37 GiB. A coin of one half before one release is δ doubled and ε less log 2."""
    law = Sampling(noise_multiplier=1e-4, rate=0.5)
    every = plan(Sampling(noise_multiplier=1e-4))
    doubled = account(replace(every, delta=2 * every.delta)).epsilon
    assert doubled - math.log(2) <= account(plan(law)).epsilon <= doubled * (1 + 1e-9)
    assert sampled.mechanism_bound(0.1, law) == pytest.approx(0.55)
