"""Each ``Guarantees`` bullet of ``clip``."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak.core.update import Update
from gradleak.defenses.clip import Clip

pytestmark = pytest.mark.contract

RNG = torch.Generator()


def update(*, scale: float = 1.0, dtype: torch.dtype = torch.float32, seed: int = 0) -> Update:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"a": torch.randn(6, 5, generator=generator), "b": torch.randn(40, generator=generator)}
    return Update({name: (scale * tensor).to(dtype) for name, tensor in tensors.items()})


def test_norm_is_over_all_tensors_and_direction_stays() -> None:
    u = update()
    released = Clip(max_norm=0.5).apply(u, RNG)
    assert released.norm() == pytest.approx(0.5, rel=1e-6)
    for name in u:
        torch.testing.assert_close(released[name], u[name] * (0.5 / u.norm()))


def test_a_short_update_is_left_alone() -> None:
    u = update()
    released = Clip(max_norm=1.001 * u.norm()).apply(u, RNG)
    assert all(torch.equal(released[name], u[name]) for name in u)


def test_the_zero_update_stays_zero() -> None:
    released = Clip(max_norm=1.0).apply(Update({"a": torch.zeros(3)}), RNG)
    assert torch.equal(released["a"], torch.zeros(3))


@settings(max_examples=60, deadline=None)
@given(
    max_norm=st.floats(1e-4, 1e4),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_released_norm_is_never_above_the_bound(max_norm: float, scale: float, seed: int, dtype: torch.dtype) -> None:
    released = Clip(max_norm=max_norm).apply(update(scale=scale, dtype=dtype, seed=seed), RNG)
    assert released.norm() <= max_norm


def test_surrogate_at_the_truth_is_the_release_for_each_restart() -> None:
    stage, truths = Clip(max_norm=5.0), [update(scale=s, seed=i) for i, s in enumerate((0.1, 1.0, 9.0))]
    released = [stage.apply(u, RNG) for u in truths]
    simulated = stage.surrogate({name: torch.stack([u[name] for u in truths]) for name in truths[0]}, released[0])
    for restart, expected in enumerate(released):
        for name, tensor in expected.items():
            torch.testing.assert_close(simulated[name][restart], tensor)


@pytest.mark.parametrize("max_norm", [0.3, 100.0])
def test_surrogate_of_some_tensors_is_the_release_too(max_norm: float) -> None:
    """Without the norm of "a", a plain clip of "b" alone would leave it too long."""
    u, stage = update(), Clip(max_norm=max_norm)
    released = stage.apply(u, RNG)
    simulated = stage.surrogate({"b": u["b"].unsqueeze(0)}, released)
    torch.testing.assert_close(simulated["b"][0], released["b"])


def test_surrogate_has_the_right_derivative() -> None:
    stage = Clip(max_norm=1.0)
    start = {name: t.double().unsqueeze(0).requires_grad_() for name, t in update().items()}

    def simulate(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(stage.surrogate(dict(zip(start, tensors, strict=True)), update()).values())

    assert torch.autograd.gradcheck(simulate, tuple(start.values()))
    assert torch.autograd.gradgradcheck(simulate, tuple(start.values()))


def test_bound_is_its_norm_and_it_adds_no_noise() -> None:
    stage = Clip(max_norm=0.7)
    assert stage.norm_bound() == 0.7 and stage.preserves_norm_bound()
    assert stage.noise_std(torch.ones(2)) == 0.0 and stage.gaussian_multiplier() is None
    assert math.isfinite(stage.apply(update(scale=1e18), RNG).norm())
