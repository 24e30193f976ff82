"""Patch exact: the picture of one record from a vision transformer's patch map and position table, by linear algebra."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from gradleak.attacks.patch_exact.frozen import from_first_norm
from gradleak.attacks.patch_exact.noise import denoised
from gradleak.attacks.patch_exact.reading import PatchCase
from gradleak.core.attack import Attack, Clock, Reconstruction, Status
from gradleak.core.batch import Modality
from gradleak.core.errors import NotApplicableError
from gradleak.core.knowledge import View
from gradleak.core.specs import name_of, require_ranges
from gradleak.core.stage import ModelStage, UpdateStage
from gradleak.core.update import Update
from gradleak.mechanics.patches.closed_form import PatchSolution, solve_patches
from gradleak.mechanics.patches.prior import MEAN

_CUT = 1e-5
"""Certificates of clean float32 gradients are at most 2e-7; a table that is one row off leaves 1e-3 and more."""

_HALF_LEVEL = 0.5 / 255
"""A pixel is exact if its eight-bit value is."""

_FROZEN_CUT = 1e-2
"""Relative residual of the first normalization's equations; a record that does not follow them leaves about 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchExact(Attack):
    """The closed form of vision transformers that add a learned table to a linear map of disjoint patches.

        dL/dW = Σ_p δ_p x_pᵀ = Δᵀ X,     Δ = gradients of the table's patch rows,     X = (Δᵀ)⁺ dL/dW

    Neither labels nor weights are used, and there is no search; dropout, clipping, any factor, and SGD deltas of any number of
    steps leave the identity as it is. Where the table is not shared, the same patches follow from the row space of the first
    attention's gradients, if the constant rows are independent and twice the number of patches fits into the width. Under
    rounding or noise the most likely picture is found with a prior of photographs, first from the two tensors, then from
    the whole update.

    Args:
        iterations: Gauss–Newton steps on the whole update; only under noise, and where it can be replayed.

    Guarantees:
        ``EXACT`` means: the certificate ‖ΔᵀX − dL/dW‖ / ‖dL/dW‖ is below 1e-5, every pixel lies in [0, 1] up to its error, and the
        error that the residual lets one expect is below half of an eight-bit level. Two records never give a picture
        where their number is known, nor where it is unknown and the update is clean.

    Source: derived above. That gradients of a position table tell the patches of a transformer was shown by Lu et al. 2022
        (APRIL) for models that were changed for it; nothing has to be changed here.
    """

    summary: ClassVar[str] = "The picture of one record from a vision transformer's first two tensors; exact."
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image"})
    needs: ClassVar[frozenset[str]] = frozenset({"subject"})
    uses: ClassVar[frozenset[str]] = frozenset({"batch_size", "trainer", "stages", "labels"})

    iterations: int = 30

    def __post_init__(self) -> None:
        require_ranges(self, counts=("iterations",))

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        case = PatchCase.of(update, view)
        rows = case.rows()
        if rows is None:
            return _from_frozen_table(case)
        solution = solve_patches(rows, case.gradient)
        if solution.certificate <= _CUT and len(rows) < rows.shape[1]:
            return _from_clean(case, solution)
        if case.batch_size is None and not _announced(case):
            raise NotApplicableError(
                f"The gradient of the patch map is not made of the table's rows (relative residual {solution.certificate:.1e}): "
                "it is that of several records, or carries noise that this adversary does not know of."
            )
        return self._from_noisy(case, solution, _label(case, view), clock)

    def _from_noisy(self, case: PatchCase, solution: PatchSolution, label: int | None, clock: Clock) -> Reconstruction:
        answer = denoised(case, solution, clock, iterations=self.iterations, label=label)
        how = "the whole update" if answer.replayed else "the two tensors"
        sure = "" if math.isnan(answer.deviation) else f"; expected error of a pixel {answer.deviation:.2g}"
        few = len(case.rows()) >= case.gradient.shape[0] if case.rows() is not None else False  # type: ignore[arg-type]
        why = (
            f"{case.entrance.count} patches are not unique at width {case.gradient.shape[0]}"
            if few
            else f"the certificate is {solution.certificate:.1e}"
        )
        return Reconstruction(
            records=(answer.picture[0].clamp(0.0, 1.0).float(),),
            labels=None if label is None else (label,),
            status=Status.BUDGET_SPENT if answer.spent else Status.UNDECIDED,
            certificate=solution.certificate,
            message=f"Not exact, {why}; the most likely picture by {how} and a prior of photographs{sure}.",
            adapted=_adapted(case),
            statistics=_statistics(case, solution.certificate, answer.deviation),
        )


def _from_clean(case: PatchCase, solution: PatchSolution) -> Reconstruction:
    picture = case.picture(solution.patches, rest=MEAN)[0]
    error = solution.standard_error * float(case.channel_std().square().mean().sqrt())
    inside = bool(((picture > -_margin(error)) & (picture < 1.0 + _margin(error))).all())
    exact = error < _HALF_LEVEL and inside
    left = "" if case.entrance.covers else " Pixels at the edge belong to no patch and are filled with gray."
    outside = "" if inside else " Some pixels lie outside of [0, 1]."
    return Reconstruction(
        records=(picture.clamp(0.0, 1.0).float(),),
        status=Status.EXACT if exact and case.entrance.covers else Status.UNDECIDED,
        certificate=solution.certificate,
        message=f"{case.entrance.count} patches from the table's rows; expected error of a pixel {error:.1e}.{outside}{left}",
        adapted=_adapted(case),
        statistics=_statistics(case, solution.certificate, error),
    )


def _from_frozen_table(case: PatchCase) -> Reconstruction:
    spaces = from_first_norm(case)
    if spaces.certificate > _FROZEN_CUT:
        raise NotApplicableError(
            f"No table was shared, and the first attention's gradients do not fit one record (relative residual "
            f"{spaces.certificate:.1e}): the update holds several records, or noise."
        )
    picture = case.picture(spaces.offsets, rest=MEAN)[0]
    error = spaces.standard_error * float(case.channel_std().square().mean().sqrt())
    inside = bool(((picture > -_margin(error)) & (picture < 1.0 + _margin(error))).all())
    exact = error < _HALF_LEVEL and inside and case.entrance.covers
    return Reconstruction(
        records=(picture.clamp(0.0, 1.0).float(),),
        status=Status.EXACT if exact else Status.UNDECIDED,
        certificate=spaces.certificate,
        message=f"{case.entrance.count} patches from the first attention's row space, without the table's gradient; expected error of "
        f"a pixel {error:.1e}.",
        adapted=_adapted(case),
        statistics=_statistics(case, spaces.certificate, error),
    )


def _margin(error: float) -> float:
    """How far a pixel may lie outside of [0, 1]: eight standard errors, and rounding."""
    return 8 * error + 1e-3


def _announced(case: PatchCase) -> bool:
    """Whether known stages or the number format explain that the identity holds only roughly."""
    std = case.stage_std(case.entrance.weight)
    return std is None or std > 0 or bool(case.noisy(case.entrance.weight).variance.max() > _rounding(case))


def _rounding(case: PatchCase) -> float:
    """Variances above this are more than float32 sums make."""
    return (1e-6 * float(case.gradient.double().square().mean().sqrt())) ** 2


def _label(case: PatchCase, view: View) -> int | None:
    """As it is known, or the entry of the head's bias gradient that descends; noise can hide that."""
    labels = view.get("labels")
    if labels is not None:
        return int(torch.as_tensor(labels).flatten()[0])
    head = case.subject.anatomy.head
    if head is None or head.bias is None or head.bias not in case.update:
        return None
    descent = case.trainer is not None and case.trainer.training.share == "delta"
    return int(case.update[head.bias].argmax() if descent else case.update[head.bias].argmin())


def _adapted(case: PatchCase) -> tuple[str, ...]:
    """Stages above the first sum or that rescale change nothing; noise of known size is weighed."""
    return tuple(
        name_of(stage)
        for stage in case.stages
        if isinstance(stage, ModelStage)
        or stage.norm_bound() is not None
        or (isinstance(stage, UpdateStage) and (stage.noise_std(case.gradient) or 0.0) > 0)
    )


def _statistics(case: PatchCase, certificate: float, error: float) -> dict[str, float]:
    statistics = {
        "patches": float(case.entrance.count),
        "width": float(case.gradient.shape[0]),
        "certificate": certificate,
    }
    return statistics if math.isnan(error) or math.isinf(error) else statistics | {"expected_error": error}
