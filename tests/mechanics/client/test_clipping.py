"""Clips: no row longer than the bound, short rows untouched, derivatives that finite differences confirm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradleak.mechanics.client.clipping import ClipExample, ClipTensor, square_norms

pytestmark = pytest.mark.contract


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(
    records: int = 5, scale: float = 3.0, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, torch.Tensor]:
    generator = rng(seed)
    return {
        "matrix": (scale * torch.randn(records, 20, 30, generator=generator)).to(dtype),
        "vector": (scale * torch.randn(records, 40, generator=generator)).to(dtype),
    }


@settings(max_examples=60, deadline=None)
@given(
    max_norm=st.floats(1e-3, 1e3),
    scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_no_row_is_longer_than_the_clip(max_norm: float, scale: float, dtype: torch.dtype, seed: int) -> None:
    given_rows = rows(scale=scale, dtype=dtype, seed=seed)
    assert bool((square_norms(ClipExample(max_norm=max_norm)(given_rows)).sqrt() <= max_norm * (1 + 1e-15)).all())
    for name, tensor in ClipTensor(max_norm=max_norm)(given_rows).items():
        assert bool((square_norms({name: tensor}).sqrt() <= max_norm * (1 + 1e-15)).all())


def test_short_rows_are_left_alone_and_long_ones_keep_their_direction() -> None:
    given_rows = rows()
    lengths = square_norms(given_rows).sqrt()
    middle = float(lengths.median())
    clipped = ClipExample(max_norm=middle)(given_rows)
    for i, length in enumerate(lengths.tolist()):
        for name, tensor in given_rows.items():
            torch.testing.assert_close(clipped[name][i], tensor[i] * min(1.0, middle / length), rtol=1e-6, atol=0)


def test_clips_are_differentiable() -> None:
    start = {name: tensor.double().requires_grad_() for name, tensor in rows(2).items()}

    def run(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(ClipExample(max_norm=1.0)(dict(zip(start, tensors, strict=True))).values())

    small = tuple(tensor[..., :3].detach().requires_grad_() for tensor in start.values())
    assert torch.autograd.gradcheck(run, small)
