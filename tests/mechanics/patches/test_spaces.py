"""Both derivations of the affine spaces hold the truth, agree, and their dimension and laws are those that are claimed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.core.knowledge import Observation
from gradleak.mechanics.patches.closed_form import position_rows
from gradleak.mechanics.patches.first_tokens import FirstTokens, read_first_tokens
from gradleak.mechanics.patches.spaces import PatchSpaces, spaces_from_norm, spaces_from_positions
from gradleak.models.reading.patches import PatchEmbedding, read_patch_embedding
from tests.support.vision import observe_pictures, photographs, vision_subject

pytestmark = pytest.mark.oracle


def both(kind: str, records: int) -> tuple[PatchSpaces, PatchSpaces, Tensor]:
    subject = vision_subject(kind, patch_size=16)
    pixels = photographs(32, records)
    update = observe_pictures(subject, pixels).update
    entrance = read_patch_embedding(subject.module, subject.anatomy)
    assert entrance is not None and entrance.table is not None and entrance.mixing is not None
    rows = position_rows(update[entrance.table], entrance.mixing)
    tokens = read_first_tokens(subject, entrance)
    assert rows is not None and tokens is not None
    gradient = update[entrance.weight].flatten(1)
    readers = [m.as_matrix(update[m.weight]) for m in subject.anatomy.blocks[0].attention_inputs]
    return (
        spaces_from_positions(rows, gradient, records=records),
        spaces_from_norm(tokens, gradient, readers, records=records),
        entrance.to_patches(pixels.double()),
    )


@pytest.mark.oracle
@pytest.mark.parametrize("records", [1, 2, 3])
@pytest.mark.parametrize("kind", ["vit", "ijepa", "dinov2_with_registers"])
def test_every_record_lies_in_the_spaces(kind: str, records: int) -> None:
    by_rows, by_norm, patches = both(kind, records)
    for found in (by_rows, by_norm):
        assert found.directions.shape == (768, (records - 1) * 4)
        off = patches - found.offsets
        outside = off - (off @ found.directions) @ found.directions.T
        assert float(outside.abs().max()) < 1e-4
        assert records == 1 or float(off.abs().max()) > 0.05
    angle = by_norm.directions - by_rows.directions @ (by_rows.directions.T @ by_norm.directions)
    assert float(angle.norm()) < 1e-2


def law(offsets: Tensor, others: Tensor) -> FirstTokens:
    subject = vision_subject(patch_size=16)
    entrance = read_patch_embedding(subject.module, subject.anatomy)
    assert isinstance(entrance, PatchEmbedding)
    found = read_first_tokens(subject, entrance)
    assert found is not None
    return FirstTokens(weight=found.weight, offsets=offsets, others=others, norm=found.norm)


@pytest.mark.oracle
def test_undetermined_counts_what_the_constants_share() -> None:
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 96, generator=rng, dtype=torch.float64)
    other = torch.randn(1, 96, generator=rng, dtype=torch.float64)
    assert law(rows, other).undetermined() == 0
    assert law(rows, torch.zeros(3, 96, dtype=torch.float64)).undetermined() == 0
    assert law(torch.cat([rows[:3], rows[:1] - rows[1:2]]), other).undetermined() == 1
    assert law(torch.cat([rows[:3], other + 2.0]), other).undetermined() == 1
    assert law(rows[:1].expand(4, -1), other).undetermined() == 3


def frozen(width: int, bias: float) -> tuple[Observation, FirstTokens]:
    subject = vision_subject(patch_size=16, hidden_size=width)
    norm = subject.module.get_submodule(subject.anatomy.blocks[0].norms[0])
    with torch.no_grad():
        norm.get_parameter("bias").add_(bias * torch.linspace(-1, 1, width))
    entrance = read_patch_embedding(subject.module, subject.anatomy)
    assert entrance is not None
    tokens = read_first_tokens(subject, entrance)
    assert tokens is not None
    return observe_pictures(subject, photographs(32)), tokens


@pytest.mark.oracle
@pytest.mark.parametrize("bias", [0.0, 0.1])
def test_equations_needed_is_the_width_at_which_they_suffice(bias: float) -> None:
    needed = frozen(48, bias)[1].equations_needed()
    assert needed == 2 * 4 + 2 + (bias > 0)
