"""What a number format leaves, against its error on random values."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.errors import UnknownNameError
from gradleak.theory.noise import detectability, rounding

pytestmark = pytest.mark.oracle


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
