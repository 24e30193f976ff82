"""Numbers of the founding note and of section 6 of the guarantees that no other test holds; the map of all of them is
``docs/theory/acceptance.md``."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gradleak.mechanics.attention.softmax import Attention, data_jacobian
from gradleak.privacy.accounting import closed_forms, gaussian
from gradleak.theory.noise import detectability
from gradleak.theory.noise import token_power as token_test
from gradleak.theory.noise.token_power import TokenTest


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def instance(n: int, d: int, seed: int) -> tuple[Attention, Tensor, Tensor]:
    """X, B ~ N(0, 1); W, V ~ N(0, 1)/√d; s = 1/√d: the setting of section 5."""
    g = rng(seed)
    x, b, w, v = (
        torch.randn(*shape, dtype=torch.float64, generator=g) for shape in ((n, d), (n, d), (1, d, d), (1, d, d))
    )
    return Attention(scores=w / math.sqrt(d), values=v / math.sqrt(d), scale=1 / math.sqrt(d)), x, b


def beside(x: Tensor, share: float, seed: int) -> Tensor:
    away = torch.randn(x.shape, dtype=x.dtype, generator=rng(seed))
    return x + share * away * (x.norm() / away.norm())


def errors_of(n: int, d: int, seed: int, *, start: float, steps: int, spectral: float = 0.0) -> list[float]:
    """Relative errors of Gauss–Newton; ``spectral`` multiplies its matrix by 1 ± so much in every direction."""
    layer, x, b = instance(n, d, seed)
    goal, now, g = layer.at(x, b).gradient().flat(), beside(x, start, seed + 1), rng(seed + 2)
    found = [start]
    for _ in range(steps):
        point = layer.at(now, b)
        j = data_jacobian(point)
        values, basis = torch.linalg.eigh(j.T @ j)
        half = basis * values.clamp(min=0).sqrt()
        turn = torch.linalg.qr(torch.randn(len(values), len(values), dtype=x.dtype, generator=g)).Q
        error = turn @ torch.diag(spectral * (2 * torch.rand(len(values), dtype=x.dtype, generator=g) - 1)) @ turn.T
        matrix = half @ (torch.eye(len(values), dtype=x.dtype) + error) @ half.T
        step = torch.linalg.solve(matrix, j.T @ (point.gradient().flat() - goal))
        now = now - step.view_as(x)
        found.append(float((now - x).norm() / x.norm()))
    return found


@pytest.mark.parametrize(("n", "d"), [(4, 8), (8, 8), (8, 16)])
def test_14_gauss_newton_is_quadratic_near_the_truth(n: int, d: int) -> None:
    """From a relative distance of .05 all of 20 instances are within 1e-10 after at most 6 steps."""
    assert all(min(errors_of(n, d, 500 + 10 * seed, start=0.05, steps=6)) < 1e-10 for seed in range(20))


def test_15_a_hessian_known_to_one_percent_still_contracts() -> None:
    """Steps 2 to 6 shrink the error by .4 at least, the published rate; what is seen is about .01."""
    for seed in range(10):
        found = errors_of(4, 8, 700 + 10 * seed, start=0.05, steps=6, spectral=0.01)
        rates = [after / before for before, after in pairwise(found[1:]) if before > 1e-11]
        assert rates and max(rates) <= 0.4
        assert sorted(rates)[len(rates) // 2] < 0.02


def test_2_1_the_gradient_of_bounded_tokens_is_bounded() -> None:
    """‖G_V‖ ≤ √n max‖x‖ ‖C‖ and ‖G_W‖ ≤ s diam/4 Σ ‖x_j‖ range(q_j), on random and on adversarial draws; both are nearly met."""
    worst = [0.0, 0.0]
    for seed in range(400):
        g = rng(seed)
        n, d = int(torch.randint(1, 5, (1,), generator=g)), int(torch.randint(1, 5, (1,), generator=g))
        layer, x, b = instance(n, d, 2000 + seed)
        if seed % 2:
            # Two clusters and scores of one size: rows of softmax on the edge, ranges used to the full.
            x = torch.sign(x[:, :1]) * torch.ones(1, d, dtype=x.dtype) + 1e-3 * x
            layer = Attention(scores=1e-3 * layer.scores, values=layer.values, scale=layer.scale)
        point = layer.at(x, b)
        gradient = point.gradient()
        c = layer.output(x) - b
        q = c @ (x @ layer.values[0]).mT
        ranges = q.max(-1).values - q.min(-1).values
        diameter = float((x.unsqueeze(0) - x.unsqueeze(1)).norm(dim=-1).max())
        size = x.norm(dim=1)
        caps = (
            math.sqrt(n) * float(size.max() * c.norm()),
            layer.scale * diameter / 4 * float((size * ranges).sum()),
        )
        for k, part in enumerate((gradient.values, gradient.scores)):
            if caps[k] > 1e-3:  # below, all tokens are alike and differences are rounding
                worst[k] = max(worst[k], float(part.norm()) / caps[k])
    assert max(worst) <= 1 + 1e-9
    assert min(worst) > 0.8, "not vacuous"


@pytest.mark.parametrize(("n", "d"), [(3, 5), (4, 6), (5, 5)])
def test_leakage_map_of_a_single_head(n: int, d: int) -> None:
    """Which of the gradients suffices, targets known and n ≤ d: that of V alone has full rank, that of W one less."""
    layer, x, b = instance(n, d, 40)
    j = data_jacobian(layer.at(x, b))
    ranks = [int(torch.linalg.matrix_rank(part, rtol=1e-9)) for part in (j[: d * d], j[d * d :], j)]
    assert ranks == [n * d - 1, n * d, n * d]


LADDER = [
    # d, n, share f; spectral threshold and token test at m = d and m = 3d
    (768, 1, 1.0, (0.0361, 0.0274), (0.0704, 0.0544)),
    (768, 16, 0.1, (0.00285, 0.00217), (0.00557, 0.00430)),
    (768, 128, 0.1, (0.00101, 0.00077), (0.00197, 0.00152)),
    (1024, 16, 0.1, (0.00247, 0.00188), (0.00521, 0.00401)),
    (4096, 16, 0.1, (0.00124, 0.00094), (0.00375, 0.00287)),
    (4096, 512, 0.1, (0.00022, 0.00017), (0.00066, 0.00051)),
]


@pytest.mark.parametrize(("d", "n", "share", "spectral", "token"), LADDER)
def test_6_5_the_ladder(
    d: int, n: int, share: float, spectral: tuple[float, float], token: tuple[float, float]
) -> None:
    """Noise multipliers at which equal tokens go under, to the digits of the table."""
    for m, edge, half in zip((d, 3 * d), spectral, token, strict=True):
        assert detectability.dies_at(share, n, d, m) == pytest.approx(edge, rel=0.025)
        strength = TokenTest(columns=m, candidates=50_257).strength_for(0.5)
        assert math.sqrt(share / n / strength) == pytest.approx(half, rel=0.015)


@pytest.mark.parametrize("times", [1, 4, 64])
def test_6_2_many_observations(times: int) -> None:
    """Fresh error signals stacked side by side lower the threshold per step by T^¼, the same update averaged by T^½."""
    one = detectability.threshold(1.0, 256, 256)
    assert detectability.threshold(1.0, 256, 256 * times) / math.sqrt(times) == pytest.approx(one * times**-0.25)
    assert detectability.threshold(times**-0.5, 256, 256) == pytest.approx(one * times**-0.5)


@pytest.mark.parametrize(("cosine", "strength"), [(0.5, 60.0), (0.8, 120.0), (0.95, 400.0)])
def test_6_4_correlated_tokens_are_told_apart_as_often_as_said(cosine: float, strength: float) -> None:
    """Two candidates, 20,000 draws: the law is normal in the difference, good to .02."""
    m, g = 96, rng(0)
    noise = torch.randn(2, 20_000, m, generator=g)
    true = noise[0].clone()
    true[:, 0] += math.sqrt(strength)
    other = cosine * true + math.sqrt(1 - cosine**2) * noise[1]
    right = float((true.square().sum(1) > other.square().sum(1)).double().mean())
    assert token_test.told_apart(strength, columns=m, cosine=cosine) == pytest.approx(right, abs=0.02)


ORDERS = tuple(float(order) for order in range(2, 257))


def renyi(z: float, steps: int, rate: float = 1.0) -> float:
    """ε at δ = 1e-5 from whole orders, as the note computes it."""
    divergences = tuple(steps * closed_forms.poisson_gaussian_divergence(order, rate, z) for order in ORDERS)
    return closed_forms.renyi_epsilon(ORDERS, divergences, 1e-5)


@pytest.mark.parametrize(
    ("z", "steps", "exact", "zcdp", "rdp"),
    [(10, 10, 1.20, 1.57, 1.31), (20, 100, 1.99, 2.52, 2.17), (50, 1000, 2.59, 3.24, 2.81), (5, 100, 10.0, 11.6, 10.8)],
)
def test_2_2_composition_without_sampling(z: float, steps: int, exact: float, zcdp: float, rdp: float) -> None:
    mu = closed_forms.composed_mu([(z, steps)])
    found = (closed_forms.gaussian_epsilon(mu, 1e-5), renyi(z, steps), closed_forms.zcdp_epsilon(mu**2 / 2, 1e-5))
    assert found == pytest.approx((exact, rdp, zcdp), rel=5e-3)
    assert mu == pytest.approx(math.sqrt(steps) / z) and list(found) == sorted(found)


@pytest.mark.parametrize(
    ("rate", "z", "steps", "certified", "asymptotic"),
    [
        (0.01, 1.0, 1000, 2.11, 1.07),
        (0.01, 1.1, 10000, 5.65, 3.09),
        (0.01, 4.0, 10000, 1.04, 0.85),
        (0.1, 2.0, 100, 2.59, 1.70),
        (256 / 60000, 1.1, 14062, 2.60, 1.56),
    ],
)
def test_2_2_poisson_sampling(rate: float, z: float, steps: int, certified: float, asymptotic: float) -> None:
    """Whole orders; the moments accountant's asymptotic form is below every certified value and is printed nowhere."""
    found = renyi(z, steps, rate)
    assert found == pytest.approx(certified, abs=6e-3)
    assert rate * math.sqrt(steps * math.log(1e5)) / z == pytest.approx(asymptotic, abs=6e-3)
    assert asymptotic < found


@pytest.mark.parametrize(
    ("goal", "textbook", "exact"),
    [(0.1, 48.4, 30.8), (1.0, 4.85, 3.73), (4.0, 1.21, 1.08), (8.0, 0.606, 0.600), (16.0, 0.303, 0.344)],
)
def test_2_2_textbook_noise(goal: float, textbook: float, exact: float) -> None:
    """At ε = 16 the textbook's noise is not private: its true δ is 3.4e-4."""
    multiplier = closed_forms.gaussian_multiplier(goal, 1e-5)
    assert multiplier == pytest.approx(exact, rel=3e-3)
    classical = math.sqrt(2 * math.log(1.25e5)) / goal
    assert classical == pytest.approx(textbook, rel=3e-3)
    assert (classical < multiplier) is (goal > 8)
    if goal == 16.0:
        assert gaussian.delta(classical, goal) == pytest.approx(3.4e-4, rel=0.02)
