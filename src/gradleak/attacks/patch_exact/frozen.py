"""Tables that are not trained leave no rows; then the tokens themselves, as the first attention reads them, tell the positions."""

from __future__ import annotations

from gradleak.attacks.patch_exact.reading import PatchCase
from gradleak.core.errors import NotApplicableError
from gradleak.mechanics.patches.first_tokens import FirstTokens, read_first_tokens
from gradleak.mechanics.patches.spaces import PatchSpaces, spaces_from_norm


def from_first_norm(case: PatchCase) -> PatchSpaces:
    """The patches from the row space of the first attention's gradients.

    Raises:
        NotApplicableError: where they do not follow from it, with the reason.
    """
    tokens = read_first_tokens(case.subject, case.entrance)
    if tokens is None:
        raise NotApplicableError(
            "No gradient of a position table was shared, and the first attention reads something else than normalized sums "
            "of patches and constants, so the positions of the patches do not follow from linear equations."
        )
    _check_unique(case, tokens)
    readers = case.subject.anatomy.blocks[0].attention_inputs
    shared = [m.as_matrix(case.update[m.weight]) for m in readers if m.weight in case.update]
    if not any(bool(gradient.any()) for gradient in shared):
        raise NotApplicableError(
            "Neither the gradient of a position table nor one of the first attention's input maps is part of the update."
        )
    return spaces_from_norm(tokens, case.gradient, shared, records=1)


def _check_unique(case: PatchCase, tokens: FirstTokens) -> None:
    patches = case.entrance.count
    if patches > 1 and not bool((tokens.offsets - tokens.offsets[:1]).abs().max() > 0):
        raise NotApplicableError(
            "Nothing that depends on the position is added to the patches (positions enter inside the attention, as rotations "
            "or biases), so no gradient of a position table exists and the patches are known up to linear combinations only."
        )
    needed = tokens.equations_needed()
    width = tokens.weight.shape[0]
    if needed > width:
        raise NotApplicableError(
            f"No gradient of a position table was shared, and without it {patches} patches need a width of {needed} to be unique; "
            f"the model is {width} wide."
        )
    lost = tokens.undetermined()
    if lost:
        raise NotApplicableError(
            f"No gradient of a position table was shared, and the {patches} constant rows that are added to the patches are linearly "
            f"dependent (as those of sinusoidal tables are): {lost} dimensions of every patch do not follow from the update."
        )
