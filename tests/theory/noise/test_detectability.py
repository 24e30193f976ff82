"""The laws of detection against simulation, each with numbers that were known before (guarantees, tests F2 to F5)."""

from __future__ import annotations

import math

import pytest
import torch

from gradleak.core.errors import SpecError, UnknownNameError
from gradleak.theory.noise import detectability, rounding
from gradleak.theory.noise import detectability as null_law
from gradleak.theory.noise import token_power as token_test
from gradleak.theory.noise.token_power import TokenTest

pytestmark = pytest.mark.oracle


def spiked(rows: int, columns: int, singular: float, seed: int) -> tuple[float, float, float]:
    """Largest singular value of signal plus unit noise, and squared cosines of its vectors with the true ones."""
    rng = torch.Generator().manual_seed(seed)
    u, v = torch.randn(rows, generator=rng), torch.randn(columns, generator=rng)
    u, v = u / u.norm(), v / v.norm()
    noisy = singular * torch.outer(u, v) + torch.randn(rows, columns, generator=rng)
    if rows > columns:
        u, v, noisy = v, u, noisy.T
    left = torch.linalg.eigh(noisy @ noisy.T)[1][:, -1]
    right = left @ noisy
    cosines = float((left @ u) ** 2), float((right @ v) ** 2 / right.square().sum())
    return float(right.norm()), *(cosines if rows <= columns else cosines[::-1])


@pytest.mark.parametrize(("rows", "columns"), [(256, 256), (256, 768), (768, 256)])
@pytest.mark.parametrize("times", [1.3, 2.0])
def test_a_visible_direction_appears_where_it_should(rows: int, columns: int, times: float) -> None:
    """F2: λ and cos² within 3 % (points, for cos²). At 1.3× a cosine varies by .06 per draw, the mean of 40 by .010."""
    singular = times * detectability.threshold(1.0, rows, columns)
    law = detectability.spike(singular, 1.0, rows, columns)
    draws = torch.tensor([spiked(rows, columns, singular, seed) for seed in range(40)])
    value, left, right = draws.mean(0).tolist()
    assert law.visible
    assert value == pytest.approx(law.singular, rel=0.03)
    assert left == pytest.approx(law.cosine_left, abs=0.03)
    assert right == pytest.approx(law.cosine_right, abs=0.03)


def test_published_values_of_the_spike() -> None:
    found = detectability.spike(1.3 * 16.0, 1.0, 256, 256)
    assert (found.singular, found.cosine_left) == (pytest.approx(33.11, abs=0.01), pytest.approx(0.408, abs=5e-4))
    tall = detectability.spike(1.3 * detectability.threshold(1.0, 256, 768), 1.0, 256, 768)
    assert (tall.cosine_left, tall.cosine_right) == (pytest.approx(0.484, abs=5e-4), pytest.approx(0.321, abs=5e-4))


def test_below_the_threshold_nothing_is_seen() -> None:
    singular = 0.7 * detectability.threshold(1.0, 256, 256)
    assert not detectability.spike(singular, 1.0, 256, 256).visible
    assert max(spiked(256, 256, singular, seed)[1] for seed in range(4)) < 0.05


@pytest.mark.parametrize(
    ("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp8", torch.float8_e4m3fn)]
)
@pytest.mark.parametrize("scale", [1.0, 1.37])
def test_rounding_is_noise_of_the_stated_size(dtype: str, kind: torch.dtype, scale: float) -> None:
    """F5: within 3 %."""
    x = scale * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    measured = float((x.to(kind).float() - x).square().mean().sqrt())
    assert measured == pytest.approx(rounding.rounding_std(dtype, float(x.square().mean().sqrt())), rel=0.03)


def test_the_factor_of_the_notes_is_four_percent_low() -> None:
    """0.408 was printed; normal entries have 0.425, and only a uniform law goes below."""
    assert rounding.rounding_std("bf16", 256.0) == pytest.approx(0.4247, abs=1e-4)
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0)) + 1e-3
    measured = float((u.bfloat16().float() - u).square().mean().sqrt() / u.square().mean().sqrt()) * 2**8
    assert measured == pytest.approx(0.378, abs=0.004)


def weakest_cosine(directions: int, times: float) -> float:
    """Mean cos² between the weakest direction of a bf16 gradient and the true one, ``times`` above the floor."""
    cosines = []
    for seed in range(4):
        rng = torch.Generator().manual_seed(seed)
        u, v = (torch.linalg.qr(torch.randn(256, directions + 1, generator=rng)).Q for _ in range(2))
        s = torch.full((directions + 1,), directions**-0.5)
        s[-1] = times * rounding.hidden_below("bf16", 1.0, 256, 256)
        left = torch.linalg.svd(((u * s) @ v.T).bfloat16().float())[0]
        cosines.append(float((left[:, directions] @ u[:, directions]) ** 2))
    return sum(cosines) / len(cosines)


def test_rounding_hides_directions_of_a_gradient() -> None:
    """With sixteen and more directions rounding is as good as white: the spike law holds, and below the floor nothing does."""
    law = detectability.spike(3.0, 1.0 / 16.0, 256, 256).cosine_left
    assert law == pytest.approx(0.889, abs=1e-3)
    assert weakest_cosine(16, 3.0) == pytest.approx(law, abs=0.03)
    assert weakest_cosine(16, 0.5) < 0.05


def test_rounding_of_a_rank_one_gradient_is_not_white() -> None:
    """A stated limit: its entries are products, the errors follow them, and the floor is several times higher."""
    assert weakest_cosine(1, 3.0) < 0.1
    assert weakest_cosine(1, 6.0) > 0.9


def test_unknown_format() -> None:
    with pytest.raises(UnknownNameError, match="number format"):
        rounding.rounding_std("int3", 1.0)


@pytest.mark.parametrize("wanted", [100.0, 10.0])
def test_false_positives_of_the_span_check(wanted: float) -> None:
    """Beta((d − k)/2, k/2), V = 20 000, d = 192, k = 16; the count is Poisson, five standard deviations allowed."""
    low, high = 0.5, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        many = null_law.expected_false_positives(middle, candidates=20_000, rank=16, width=192) > wanted
        low, high = (low, middle) if many else (middle, high)
    z = torch.randn(20_000, 192, generator=torch.Generator().manual_seed(0))
    residual = (z[:, 16:].norm(dim=1) / z.norm(dim=1)).double()
    assert abs(int((residual < low).sum()) - wanted) < 5 * math.sqrt(wanted)


@pytest.mark.parametrize(
    ("rank", "residual", "digits"), [(512, 0.49, 0.01), (700, 0.20, 0.01), (748, 0.069, 0.002), (760, 0.020, 0.002)]
)
def test_margin_of_exactness(rank: int, residual: float, digits: float) -> None:
    """The published table at V = 50 257 and d = 768."""
    found = null_law.smallest_null_residual(candidates=50_257, rank=rank, width=768)
    assert found == pytest.approx(residual, abs=digits)


def test_a_full_space_accepts_everything() -> None:
    assert null_law.smallest_null_residual(candidates=10, rank=8, width=8) == 0.0
    assert null_law.expected_false_positives(0.5, candidates=10, rank=8, width=8) == 10.0
    with pytest.raises(SpecError, match="does not fit"):
        null_law.smallest_null_residual(candidates=10, rank=9, width=8)


def test_strength_at_one_half() -> None:
    """λ₅₀ = 201.7 at m = 768 and 50 257 candidates: 3.8 times better than the spectral threshold in σ²."""
    found = TokenTest(columns=768, candidates=50_257).strength_for(0.5)
    assert found == pytest.approx(201.7, abs=0.1)
    assert 768 / found == pytest.approx(3.8, abs=0.02)


def test_power_at_the_ends() -> None:
    test = TokenTest(columns=64, candidates=1000)
    assert test.power(0.0) == pytest.approx(0.05 / 1000, rel=1e-6)
    assert test.power(1e9) == 1.0
    grid = [test.power(x) for x in (10.0, 50.0, 100.0, 400.0, 2000.0, 2500.0)]
    assert grid == sorted(grid)
    with pytest.raises(SpecError, match="power"):
        test.strength_for(1e-9)
    with pytest.raises(SpecError, match="columns"):
        TokenTest(columns=0, candidates=5)


def test_strengths_are_what_projection_leaves() -> None:
    rng = torch.Generator().manual_seed(0)
    x, d = torch.randn(5, 12, generator=rng).double(), torch.randn(5, 7, generator=rng).double()
    for i, found in enumerate(token_test.strengths(x, d)):
        others = torch.linalg.qr(x[[j for j in range(5) if j != i]].T).Q
        perp = x[i] - others @ (others.T @ x[i])
        assert float(found) == pytest.approx(float(perp.square().sum() * d[i].square().sum()), rel=1e-9)


def test_a_dependent_token_has_no_strength_of_its_own() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4, 12, generator=rng).double()
    x[3] = x[0] + x[1]
    found = token_test.strengths(x, torch.randn(4, 7, generator=rng).double())
    assert (found > 0).tolist() == [False, False, True, False]


def test_recall_falls_through_the_level_it_dies_at() -> None:
    test, strength = TokenTest(columns=32, candidates=500), torch.tensor([100.0, 900.0, 2500.0])
    for level in (0.5, 0.05):
        at = token_test.dies_at(test, strength, recall=level)
        assert token_test.mean_power(test, strength, at) == pytest.approx(level, abs=1e-3)
    assert token_test.dies_at(test, torch.tensor([0.0, 0.0, 1.0])) == 0.0
