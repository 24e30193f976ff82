"""All records of a batch, one after the other: a record that was found is subtracted with its own gradient, and what is left is the
update of a batch with one record less. The last record follows in closed form.

    T = X_b (dL/dW)⁺ Δ_bᵀ = of · I     for the right label of record b, and for no other: Δ_b depends on the label, X_b does not
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.attacks.patch_batch.equations import read_equations
from gradleak.attacks.patch_batch.one_record import Affine, Candidate, search_record
from gradleak.attacks.patch_batch.reading import BatchCase
from gradleak.core.attack import Clock
from gradleak.mechanics.embeddings.labels import classes_present
from gradleak.mechanics.patches.spaces import row_space

_MOST_LABELS = 64
"""Labels that are tried for one record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peeled:
    """Records as the model reads them with their labels, and how well the searches ended.

    Attributes:
        patches: one ``[1 patches features]`` per record; missing: records for which no search arrived.
    """

    patches: tuple[Tensor, ...]
    labels: tuple[int, ...]
    searches: int
    missing: int
    spent: bool


def peel(case: BatchCase, *, restarts: int, iterations: int, rng: torch.Generator, clock: Clock) -> Peeled:
    """Finds the records one by one.

    Args:
        restarts: searches for one record at most, the best is kept; iterations: of one search.
    """
    patches: list[Tensor] = []
    labels: list[int] = []
    searches = missing = 0
    while case.records > 1 and not clock.spent():
        clock.progress(len(patches) / case.of, f"record {len(patches) + 1} of {case.of}")
        affine, equations = Affine.of(case, case.spaces()), read_equations(case)
        if not equations.spaces:
            break
        best: Candidate | None = None
        for _ in range(restarts):
            searches += 1
            candidate = search_record(affine, equations, iterations=iterations, rng=rng, clock=clock)
            if best is None or candidate.residual < best.residual:
                best = candidate
            if candidate.arrived or clock.spent():
                break
        assert best is not None
        missing += not best.arrived
        picture = affine.read(best.point)
        label = _label(case, affine.patches(best.point)[0], picture)
        case = case.without(case.passes.gradient(tuple(case.shared), picture, label))
        patches.append(affine.patches(best.point))
        labels.append(label)
    if case.records == 1:
        last = case.spaces().offsets.unsqueeze(0)
        patches.append(last)
        labels.append(_label(case, last[0], case.entrance.to_pixels(last)))
    return Peeled(
        patches=tuple(patches),
        labels=tuple(labels),
        searches=searches,
        missing=missing + case.of - len(patches),
        spent=clock.spent(),
    )


def _label(case: BatchCase, patches: Float[Tensor, "patches features"], picture: Tensor) -> int:
    """The class whose gradient can be subtracted from the patch map's so that its rank falls."""
    left, values, right = row_space(case.gradient(), case.records * case.entrance.count)
    seen = patches @ right / values
    scores = {}
    for label in _candidates(case):
        own: Mapping[str, Tensor] = case.passes.gradient((case.entrance.weight,), picture, label)
        delta = _rows_of(own[case.entrance.weight].flatten(1), patches)
        product = (seen @ (left.T @ delta.T)) / case.of
        outside = delta.T - left @ (left.T @ delta.T)
        scores[label] = float((product - torch.eye(len(product), dtype=product.dtype)).norm()) + float(
            outside.norm() / delta.norm().clamp_min(torch.finfo(delta.dtype).tiny)
        )
    return min(scores, key=scores.__getitem__)


def _rows_of(gradient: Float[Tensor, "width features"], patches: Float[Tensor, "patches features"]) -> Tensor:
    """Δ_b of one record's own dL/dW = Δ_bᵀ X_b."""
    return torch.linalg.lstsq(patches.T, gradient.T, driver="gelsd").solution


def _candidates(case: BatchCase) -> tuple[int, ...]:
    """Classes that occur for certain where that already explains the batch, else all; at most ``_MOST_LABELS``."""
    classes = range(case.subject.classes)
    present = classes_present(case.shared, case.subject.anatomy) or frozenset()
    head = case.subject.anatomy.head
    bias = None if head is None or head.bias is None else case.shared.get(head.bias)
    if bias is None or len(classes) <= _MOST_LABELS:
        return tuple(classes) if len(classes) <= _MOST_LABELS else tuple(sorted(present))[:_MOST_LABELS] or (0,)
    return tuple(int(c) for c in bias.argsort()[:_MOST_LABELS])
