"""Each ``Guarantees`` bullet of ``sign``, and the constant in its surrogate."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.update import Update
from gradleak.defenses.sign import Sign

pytestmark = pytest.mark.contract

STAGE, RNG = Sign(), torch.Generator()


def smooth(tensor: torch.Tensor) -> torch.Tensor:
    return STAGE.surrogate({"a": tensor.unsqueeze(0)}, {"a": tensor})["a"][0]


def test_zero_stays_zero() -> None:
    released = STAGE.apply(Update({"a": torch.tensor([-2.0, 0.0, 1e-30, -0.0, 5.0])}), RNG)
    assert released["a"].tolist() == [-1.0, 0.0, 1.0, 0.0, 1.0]


def test_norm_is_the_root_of_the_support() -> None:
    released = STAGE.apply(Update({"a": torch.tensor([0.1, 0.0, -0.1, 7.0])}), RNG)
    assert released.norm() == pytest.approx(3.0**0.5)
    assert not STAGE.preserves_norm_bound() and STAGE.norm_bound() is None


def test_surrogate_agrees_with_the_sign_as_documented() -> None:
    u = torch.randn(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cosine = torch.nn.functional.cosine_similarity(smooth(u), u.sign(), dim=0)
    assert float(cosine) == pytest.approx(0.984, abs=1e-3)


def test_surrogate_is_odd_increasing_and_bounded() -> None:
    u = torch.linspace(-3.0, 3.0, 101, dtype=torch.float64)
    s = smooth(u)
    torch.testing.assert_close(s, -s.flip(0))
    assert bool((s.diff() > 0).all()) and float(s.abs().max()) < 1.0


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_surrogate_does_not_change_with_scale(scale: float) -> None:
    u = torch.randn(50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(smooth(scale * u), smooth(u), rtol=1e-5, atol=1e-6)


def test_absent_rows_do_not_blur_the_rest() -> None:
    """The width follows the nonzero entries: a table with few used rows is as sharp as the used rows alone."""
    rows = torch.randn(2, 8, generator=torch.Generator().manual_seed(2))
    table = torch.zeros(500, 8)
    table[[3, 77]] = rows
    torch.testing.assert_close(smooth(table)[[3, 77]], smooth(rows))


def test_surrogate_has_the_right_derivative() -> None:
    u = torch.randn(2, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()

    def simulate(tensor: torch.Tensor) -> torch.Tensor:
        return STAGE.surrogate({"a": tensor}, {"a": tensor[0].detach()})["a"]

    assert torch.autograd.gradcheck(simulate, (u,))
    assert torch.autograd.gradgradcheck(simulate, (u,))
