"""Which closed form recovers the patches of a vision transformer's pictures, from its structure alone. Must not know attacks.

    trained table        one record:   n ≤ d              X = (Δᵀ)⁺ dL/dW
    table not shared     one record:   2n + c ≤ d, and no constant row is a combination of the other constants
    several records B    spaces:       B·n ≤ d with the table's gradient, (B + 1)·n + c ≤ d without; (B − 1)·n dimensions of
                                       every patch stay open to linear algebra and follow from later layers

n patches, d the width, c constants: tokens that are no patches, the all-ones vector that a normalization removes, its offset.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gradleak.core.errors import NotApplicableError, SpecError
from gradleak.mechanics.patches.first_tokens import FirstTokens, read_first_tokens
from gradleak.models import Subject
from gradleak.models.reading.patches import PatchEmbedding, read_patch_embedding


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchLaw:
    """One way to the patches: whether it is open, at which width it opens, and why.

    Attributes:
        needs: the least width, or None where no width would do.
        open_dimensions: of every patch, that linear equations leave undetermined where the law holds.
    """

    shared: str
    holds: bool
    needs: int | None
    open_dimensions: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchPrediction:
    """What the gradients of the first layers determine of pictures, before any attack."""

    model: str
    records: int
    patches: int
    width: int
    table: str | None
    laws: tuple[PatchLaw, ...]

    def to_plain(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def predict_patches(subject: Subject, *, records: int) -> PatchPrediction:
    """The laws for a batch of so many pictures.

    Raises:
        NotApplicableError: if the model does not cut pictures into patches by one linear map.
    """
    if records < 1:
        raise SpecError(f"A batch needs at least 1 record, got {records}.")
    entrance = read_patch_embedding(subject.module, subject.anatomy)
    if entrance is None:
        raise NotApplicableError(
            f"{subject.name} does not cut pictures into disjoint patches by one linear map; the laws of `predict` for images are "
            "about such models. Use `gradleak audit`."
        )
    tokens = read_first_tokens(subject, entrance)
    width = subject.module.get_parameter(entrance.weight).shape[0]
    return PatchPrediction(
        model=subject.name,
        records=records,
        patches=entrance.count,
        width=width,
        table=entrance.table,
        laws=(_with_table(subject, entrance, records, width), _without_table(tokens, entrance, records, width)),
    )


def _with_table(subject: Subject, entrance: PatchEmbedding, records: int, width: int) -> PatchLaw:
    shared = "with the position table's gradient"
    needs, free = records * entrance.count, (records - 1) * entrance.count
    if entrance.table is None or entrance.table not in subject.trainable():
        reason = "no table is added to the patches, or it is not trained"
        return PatchLaw(shared=shared, holds=False, needs=None, open_dimensions=free, reason=reason)
    holds = needs <= width
    return PatchLaw(
        shared=shared, holds=holds, needs=needs, open_dimensions=free, reason=_words(holds, records, needs, width)
    )


def _without_table(tokens: FirstTokens | None, entrance: PatchEmbedding, records: int, width: int) -> PatchLaw:
    shared = "without it, through the first normalization"
    free = (records - 1) * entrance.count
    if tokens is None:
        reason = "the first attention does not read a normalized sum of a patch and a constant"
        return PatchLaw(shared=shared, holds=False, needs=None, open_dimensions=free, reason=reason)
    lost = tokens.undetermined()
    if lost:
        reason = (
            f"the constant rows of the positions are linearly dependent: {lost} dimensions of every patch stay open"
        )
        return PatchLaw(shared=shared, holds=False, needs=None, open_dimensions=free + lost, reason=reason)
    needs = tokens.equations_needed(records)
    holds = needs <= width
    return PatchLaw(
        shared=shared, holds=holds, needs=needs, open_dimensions=free, reason=_words(holds, records, needs, width)
    )


def _words(holds: bool, records: int, needs: int, width: int) -> str:
    if not holds:
        return f"the width {width} is below {needs}: infinitely many patches give the same tensors"
    if records == 1:
        return f"patch_exact applies: the width {width} is at least {needs}"
    return (
        f"patch_batch applies: the width {width} is at least {needs}; the open dimensions follow from the layers behind"
    )
