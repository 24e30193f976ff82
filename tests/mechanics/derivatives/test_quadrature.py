"""Quadrature of inverse traces: brackets, Lanczos and probes against dense algebra."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from gradleak.core.errors import UsageError
from gradleak.mechanics.derivatives.quadrature import hutchinson, inverse_trace, lanczos, signs

pytestmark = pytest.mark.oracle


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spectrum(kind: str, size: int = 40) -> Tensor:
    values = torch.logspace(-4, 2, size, dtype=torch.float64)
    if kind == "with null directions":
        values[:6] = 0.0
    return values


@pytest.mark.parametrize("steps", [1, 3, 8, 20, 40])
@pytest.mark.parametrize("kind", ["full", "with null directions"])
def test_brackets_hold_probe_by_probe(kind: str, steps: int) -> None:
    """On a full basis of probes the trace is exact, so the bracket must hold it; at the end it closes."""
    rotation = torch.linalg.qr(normal(40, 40, seed=0))[0]
    matrix = rotation @ spectrum(kind).diag() @ rotation.T
    for shift in (1e-3, 1.0):
        exact = float((1 / (spectrum(kind) + shift)).sum())
        found = inverse_trace(lambda v: matrix @ v, torch.eye(40, dtype=torch.float64), shift=shift, steps=steps)
        assert 40 * found.lower <= exact * (1 + 1e-9)
        assert 40 * found.upper >= exact * (1 - 1e-9)
        if steps == 40:
            assert abs(40 * found.lower / exact - 1) < 1e-6 and abs(40 * found.upper / exact - 1) < 1e-6


def test_brackets_tighten_with_steps() -> None:
    matrix = spectrum("full").diag()
    probes = signs(5, (40,), torch.Generator().manual_seed(0), matrix)
    found = [inverse_trace(lambda v: matrix @ v, probes, shift=0.1, steps=k) for k in (2, 5, 10, 20)]
    assert all(a.lower <= b.lower and a.upper >= b.upper for a, b in itertools.pairwise(found))


def test_lanczos_ends_in_an_invariant_space() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, 3.0, 3.0], dtype=torch.float64))
    diagonal, off, square = lanczos(lambda v: matrix @ v, torch.ones(4, dtype=torch.float64), 4)
    assert len(diagonal) == 2 and float(off[-1]) == 0.0 and square == 4.0
    found = torch.linalg.eigvalsh(torch.diag(diagonal) + torch.diag(off[:-1], 1) + torch.diag(off[:-1], -1))
    assert torch.allclose(found, torch.tensor([1.0, 3.0], dtype=torch.float64))


def test_trace_probes_are_distinct_and_unbiased() -> None:
    """The reference code of the Fisher bound draws one coordinate again and again; ours must not. 4 standard errors."""
    matrix = normal(30, 30, seed=1)
    matrix = matrix @ matrix.T
    probes = signs(400, (30,), torch.Generator().manual_seed(3), matrix)
    assert len({tuple(each.tolist()) for each in probes}) == 400
    mean, error = hutchinson(lambda v: float(v @ matrix @ v), probes)
    assert abs(mean - float(matrix.trace())) < 4 * error
    with pytest.raises(UsageError, match="2 probes"):
        hutchinson(lambda v: 0.0, probes[:1])
    with pytest.raises(UsageError, match="shift"):
        inverse_trace(lambda v: v, probes, shift=0.0, steps=3)
