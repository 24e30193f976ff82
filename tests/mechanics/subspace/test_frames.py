"""Frames: orthonormal, spanning what they should and nothing else; near misses of every cut on both sides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.mechanics.subspace.frames import (
    complement,
    frame_of,
    new_directions,
    orthogonal_to,
    orthonormal_fields,
    outside,
    outside_each,
)

pytestmark = pytest.mark.oracle


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_orthonormal(columns: Tensor) -> None:
    torch.testing.assert_close(columns.T @ columns, torch.eye(columns.shape[1], dtype=columns.dtype))


@pytest.mark.parametrize("rows", [3, 8, 20])
def test_a_frame_spans_rows_that_depend_on_each_other(rows: int) -> None:
    """Of rank 3 whichever Gram matrix is the smaller: the projection is that of the pseudo-inverse."""
    vectors = normal(rows, 3) @ normal(3, 8, seed=1)
    frame = frame_of(vectors, cut=1e-10, relative=True)
    assert frame.shape == (8, 3)
    assert_orthonormal(frame)
    torch.testing.assert_close(frame @ frame.T, torch.linalg.pinv(vectors, rtol=1e-8) @ vectors)
    assert float(outside(vectors, frame).norm()) < 1e-10 * float(vectors.norm())


def test_the_cut_is_on_squared_singular_values() -> None:
    rows = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert frame_of(rows, cut=0.99).shape[1] == 2
    assert frame_of(rows, cut=1.01).shape[1] == 1
    assert frame_of(rows, cut=0.24, relative=True).shape[1] == 2
    assert frame_of(rows, cut=0.26, relative=True).shape[1] == 1


def test_no_rows_span_nothing() -> None:
    empty = normal(0, 5)
    assert frame_of(empty, cut=1e-6).shape == frame_of(empty, cut=1e-6, relative=True).shape == (5, 0)
    assert torch.equal(outside(normal(2, 5), frame_of(empty, cut=1e-6)), normal(2, 5))


def test_a_complement_is_everything_else() -> None:
    columns = normal(7, 3)
    rest = complement(columns)
    assert rest.shape == (7, 4)
    assert_orthonormal(rest)
    assert float((rest.T @ columns).abs().max()) < 1e-12


def test_orthogonal_to_a_vector_loses_one_direction_of_the_space() -> None:
    frame, vector = complement(normal(7, 3)), normal(7, seed=2)
    less = orthogonal_to(frame, vector)
    assert less.shape == (7, 3)
    assert_orthonormal(less)
    assert float((less.T @ vector).abs().max()) < 1e-12
    assert float(outside(less.T, frame).norm()) < 1e-12


def test_new_directions_are_those_beyond_the_tolerance() -> None:
    known = torch.eye(4, dtype=torch.float64)[:1]
    row = torch.tensor([[3.0, 0.1, 0.0, 0.0]], dtype=torch.float64)
    assert len(new_directions(row, known, tolerance=0.11)) == 0
    (direction,) = new_directions(row, known, tolerance=0.09)
    torch.testing.assert_close(direction, torch.eye(4, dtype=torch.float64)[1])


def test_a_second_pass_keeps_nearly_parallel_rows_orthogonal() -> None:
    """Hilbert's matrix, where one Gram–Schmidt pass loses orthogonality altogether."""
    index = torch.arange(1, 9, dtype=torch.float64)
    rows = 1 / (index[:, None] + index[None, :] - 1)
    basis = new_directions(rows, rows[:0], tolerance=1e-13)
    assert_orthonormal(basis.T)
    assert len(basis) == 8


def test_outside_each_projects_every_entry_on_its_own() -> None:
    known = torch.stack([complement(normal(6, 4, seed=seed)).T for seed in (1, 2)])
    vectors = normal(2, 5, 6)
    expected = torch.stack([outside(v, rows.T) for v, rows in zip(vectors, known, strict=True)])
    torch.testing.assert_close(outside_each(vectors, known), expected)


def test_fields_are_orthonormal_at_every_point() -> None:
    fields = [normal(2, 3, 5, seed=seed) for seed in range(3)]
    units = orthonormal_fields(fields, fields[0])
    gram = torch.einsum("ibsf,jbsf->bsij", units, units)
    torch.testing.assert_close(gram, torch.eye(3, dtype=torch.float64).expand(2, 3, 3, 3))
    torch.testing.assert_close(units[0], torch.nn.functional.normalize(fields[0], dim=-1))
    assert orthonormal_fields([], fields[0]).shape == (0, 2, 3, 5)
