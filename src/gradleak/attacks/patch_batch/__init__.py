"""Patch batch: all pictures of a small batch from a vision transformer's gradient, record by record, certified by a replay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradleak.attacks.patch_batch.peeling import Peeled, peel
from gradleak.attacks.patch_batch.polish import polish
from gradleak.attacks.patch_batch.reading import BatchCase
from gradleak.core.attack import Attack, Clock, Reconstruction, Status
from gradleak.core.batch import Batch, Modality
from gradleak.core.knowledge import View
from gradleak.core.specs import require_ranges
from gradleak.core.update import Update
from gradleak.mechanics.patches.prior import MEAN

_ROUNDING = 32 * 2.0**-23
"""Relative error between two computations of one float32 update whose sums ran in another order."""


_NEAR = 0.1
"""Records whose update is farther off than this are not worth a fit of all together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchBatch(Attack):
    """Small batches of a vision transformer, exactly, by equations that every record satisfies by itself.

    The sums over the records of dL/dW and of the position rows confine every patch to a known affine space. Inside of it a
    record is where the inputs of the maps behind the first attention lie in the row spaces of their gradients: forward passes
    alone, one record at a time, no labels. A record that was found is subtracted with its gradient; its label is the one with
    which the rank falls. The last record follows in closed form, and at the end all are fitted to the gradient together.

    Args:
        restarts: searches for one record at most, each from a sample of a prior of photographs.
        iterations: Levenberg–Marquardt steps of one search.
        joint: derivatives for the fit of all records together; 0 leaves it out.

    Guarantees:
        ``EXACT`` iff the update of the proposed records and labels, computed again by the client's own training, equals the
        released one up to the rounding of float32. Any other outcome is UNDECIDED, BUDGET_SPENT or NOT_APPLICABLE.

    Source: derived above; the affine spaces are those of the closed form for one record (``patch_exact``), the membership in row
        spaces is DAGER's (Petrov et al., arXiv 2405.15586), here as equations on continuous inputs.
    """

    summary: ClassVar[str] = "All pictures of a small batch of a vision transformer, one by one; exact."
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image"})
    losses: ClassVar[frozenset[str]] = frozenset({"classification"})
    needs: ClassVar[frozenset[str]] = frozenset({"subject", "trainer", "batch_size"})
    uses: ClassVar[frozenset[str]] = frozenset({"stages"})

    restarts: int = 4
    iterations: int = 40
    joint: int = 5

    def __post_init__(self) -> None:
        require_ranges(self, counts=("restarts", "iterations"))

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        case = BatchCase.of_view(update, view)
        found = peel(case, restarts=self.restarts, iterations=self.iterations, rng=rng, clock=clock)
        if len(found.patches) < case.of:
            return _incomplete(case, found)
        records, error = _replayed(case, update, found.patches, found.labels, rng)
        if _ROUNDING / 8 < error < _NEAR and self.joint and case.of > 1:
            closer = polish(case, found.patches, found.labels, clock, iterations=self.joint)
            again, less = _replayed(case, update, closer, found.labels, rng)
            if less < error:
                records, error = again, less
        exact = error <= _ROUNDING and case.entrance.covers
        spent = found.spent or clock.spent()
        return Reconstruction(
            records=records,
            labels=found.labels,
            status=Status.EXACT if exact else Status.BUDGET_SPENT if spent else Status.UNDECIDED,
            certificate=error,
            message=f"{case.of} records in {found.searches} searches; their update differs from the released one by {error:.1e}"
            + (f"; {found.missing} searches did not arrive." if found.missing else "."),
            statistics={"searches": float(found.searches), "not_arrived": float(found.missing), "certificate": error},
        )


def _incomplete(case: BatchCase, found: Peeled) -> Reconstruction:
    records = tuple(case.pictures(each, rest=MEAN)[0].clamp(0.0, 1.0).float() for each in found.patches)
    status = Status.BUDGET_SPENT if found.spent else Status.UNDECIDED if records else Status.NOTHING_FOUND
    why = "the time was over" if found.spent else "the width leaves no equations behind the first attention"
    return Reconstruction(
        records=records,
        status=status,
        message=f"{len(records)} of {case.of} records were searched, then {why}.",
        statistics={"searches": float(found.searches)},
    )


def _replayed(
    case: BatchCase, update: Update, patches: tuple[Tensor, ...], labels: tuple[int, ...], rng: torch.Generator
) -> tuple[tuple[Tensor, ...], float]:
    """The pictures, and the relative error of the update that the client would make of them."""
    pixels = torch.cat([case.pictures(each, rest=MEAN) for each in patches]).clamp(0.0, 1.0).float()
    batch = Batch(inputs=pixels, mask=torch.ones(len(pixels), dtype=torch.bool), labels=torch.tensor(labels))
    made = case.trainer.update(batch, rng)
    shared = [name for name in update if name in made]
    off = math.hypot(*(float((made[name] - update[name]).double().norm()) for name in shared))
    size = math.hypot(*(float(update[name].double().norm()) for name in shared))
    return tuple(pixels), off / max(size, torch.finfo(torch.float64).tiny)
