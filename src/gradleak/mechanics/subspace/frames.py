"""Orthonormal frames: of what vectors span, of what lies outside, and of what is new beside vectors that are already known.
One place for these, so that every room projects with the same rounding and the same second pass. Must not know noise or models.

A frame has orthonormal columns ``[features rank]``; vectors are rows, as everywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_PASSES = 2
"""One Gram–Schmidt pass leaves rounding along directions that nearly cancel; the second removes it (Kahan: "twice is enough")."""


def outside(
    vectors: Float[Tensor, "*batch features"], frame: Float[Tensor, "features rank"]
) -> Float[Tensor, "*batch features"]:
    """The part of each vector that the frame does not span."""
    return vectors - (vectors @ frame) @ frame.T


def complement(columns: Float[Tensor, "features rank"]) -> Float[Tensor, "features rest"]:
    """A frame of everything orthogonal to these independent columns, by a complete QR factorization."""
    return torch.linalg.qr(columns, mode="complete").Q[:, columns.shape[1] :]


def orthogonal_to(
    frame: Float[Tensor, "features rank"], vector: Float[Tensor, " features"]
) -> Float[Tensor, "features less"]:
    """A frame of the part of the frame's space that is orthogonal to a vector: one direction fewer.

    Args:
        vector: not orthogonal to the whole frame; then any one direction would be lost.
    """
    return frame @ complement((frame.T @ vector).unsqueeze(1))


def frame_of(
    rows: Float[Tensor, "rows features"], *, cut: float, relative: bool = False
) -> Float[Tensor, "features rank"]:
    """A frame of the space of the rows, which may depend on each other, from the smaller of both Gram matrices.

    Args:
        cut: squared singular values of the rows at or below it count as zero.
        relative: whether ``cut`` is in units of the largest squared singular value.
    """
    many = rows.shape[0] > rows.shape[1]
    values, vectors = torch.linalg.eigh(rows.T @ rows if many else rows @ rows.T)
    kept = values > (cut * float(values[-1]) if relative and len(values) else cut)
    return vectors[:, kept] if many else rows.T @ (vectors[:, kept] / values[kept].sqrt())


def new_directions(
    rows: Float[Tensor, "rows features"], explained: Float[Tensor, "known features"], *, tolerance: float
) -> Float[Tensor, "new features"]:
    """Orthonormal rows that the rows add to ``explained``, one after the other.

    Args:
        explained: orthonormal rows.
        tolerance: length up to which what is left of a row counts as nothing.
    """
    basis = explained
    for row in rows:
        rest = row
        for _ in range(_PASSES):
            rest = rest - (rest @ basis.T) @ basis
        if float(rest.norm()) > tolerance:
            basis = torch.cat((basis, (rest / rest.norm()).unsqueeze(0)))
    return basis[len(explained) :]


def outside_each(
    vectors: Float[Tensor, "batch options features"], known: Float[Tensor, "batch before features"]
) -> Float[Tensor, "batch options features"]:
    """The part of each vector outside the orthonormal rows of its own batch entry."""
    for _ in range(_PASSES):
        vectors = vectors - (vectors @ known.transpose(1, 2)) @ known
    return vectors


def orthonormal_fields(
    fields: Sequence[Float[Tensor, "*grid features"]], like: Tensor
) -> Float[Tensor, "kinds *grid features"]:
    """Fields of vectors made orthonormal at every point of their grid, each against those before it.

    Args:
        like: gives the number format, and the shape where there are no fields.
    """
    units: list[Tensor] = []
    for field in fields:
        v = field.to(like)
        for unit in units:
            v = v - (v * unit).sum(-1, keepdim=True) * unit
        units.append(v / v.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny))
    return torch.stack(units) if units else like.new_zeros(0, *like.shape)
