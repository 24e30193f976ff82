"""The closed form gives the picture itself, or says why it does not apply; it never gives a picture of two records."""

from __future__ import annotations

import pytest
import torch

from gradleak.attacks.patch_exact import PatchExact
from gradleak.core.attack import Status
from tests.support.vision import largest_error, observe_pictures, photographs, run_on, vision_subject

pytestmark = pytest.mark.oracle

HALF_LEVEL = 0.5 / 255
KINDS = ("vit", "deit", "ijepa", "vit_msn", "dinov2", "dinov2_with_registers")
"""One extra token, two, none, one, one, and five."""


@pytest.mark.contract
@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_for_every_structure(kind: str, size: int) -> None:
    pixels = photographs(size)
    found = run_on(PatchExact(), observe_pictures(vision_subject(kind, size=size), pixels))
    assert found.status is Status.EXACT, found.message
    assert largest_error(found, pixels) < HALF_LEVEL


@pytest.mark.contract
@pytest.mark.parametrize(
    "chain", ["clip(max_norm=0.01)", "soteria(fraction=0.5)", "precode()", "cvb()", "dropout(rate=0.1)"]
)
def test_what_rescales_or_sits_above_changes_nothing(chain: str) -> None:
    pixels = photographs(32, first=1)
    found = run_on(PatchExact(), observe_pictures(vision_subject(), pixels, chain=chain))
    assert found.status is Status.EXACT, found.message
    assert largest_error(found, pixels) < HALF_LEVEL


@pytest.mark.contract
def test_dropout_of_the_model_changes_nothing() -> None:
    pixels = photographs(32)
    subject = vision_subject(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    found = run_on(PatchExact(), observe_pictures(subject, pixels, dropout=True))
    assert found.status is Status.EXACT and largest_error(found, pixels) < HALF_LEVEL


@pytest.mark.contract
def test_several_steps_of_sgd_are_a_sum_over_the_same_patches() -> None:
    """The rounding of the weights, whose difference is shared, keeps the picture from being certified."""
    pixels = photographs(32)
    observation = observe_pictures(vision_subject(), pixels, share="delta", steps=3, lr=0.5, momentum=0.9)
    found = run_on(PatchExact(), observation)
    assert found.records and largest_error(found, pixels) < 2 / 255


@pytest.mark.contract
def test_weights_are_not_used() -> None:
    pixels, subject = photographs(32), vision_subject()
    observation = observe_pictures(subject, pixels, known={"subject": vision_subject(seed=5)})
    assert largest_error(run_on(PatchExact(), observation), pixels) < HALF_LEVEL


@pytest.mark.contract
def test_a_table_that_was_interpolated_down() -> None:
    subject = vision_subject("dinov2", size=64)
    subject.module.config.image_size = 32
    pixels = photographs(32)
    found = run_on(PatchExact(), observe_pictures(subject, pixels))
    assert found.status is Status.EXACT, found.message
    assert largest_error(found, pixels) < HALF_LEVEL


@pytest.mark.contract
@pytest.mark.parametrize("chain", ["none", "frozen_embeddings()"])
@pytest.mark.parametrize(
    "known", [{}, {"batch_size": None, "trainer": None, "stages": None}], ids=["server", "eavesdropper"]
)
def test_two_records_never_give_a_picture(known: dict[str, None], chain: str) -> None:
    observation = observe_pictures(vision_subject(hidden_size=192), photographs(32, 2), chain=chain, known=known)
    found = run_on(PatchExact(), observation)
    assert found.status is Status.NOT_APPLICABLE and not found.records
    assert "record" in found.message


@pytest.mark.contract
def test_a_frozen_table_is_solved_through_the_first_normalization() -> None:
    pixels = photographs(32)
    found = run_on(PatchExact(), observe_pictures(vision_subject(), pixels, chain="frozen_embeddings()"))
    assert found.status is Status.EXACT, found.message
    assert largest_error(found, pixels) < HALF_LEVEL


@pytest.mark.contract
@pytest.mark.parametrize(("width", "applies"), [(36, True), (33, False)])
def test_a_frozen_table_needs_twice_the_patches(width: int, applies: bool) -> None:
    """16 patches, a class token and the all-ones vector: 34 equations."""
    subject = vision_subject(hidden_size=width)
    found = run_on(PatchExact(), observe_pictures(subject, photographs(32), chain="frozen_embeddings()"))
    assert (found.status is not Status.NOT_APPLICABLE) == applies
    assert applies or "width of 34" in found.message


@pytest.mark.contract
def test_a_frozen_sinusoidal_table_is_refused_with_the_law() -> None:
    subject = vision_subject(hidden_size=192)
    table = subject.module.get_parameter("vit.embeddings.position_embeddings")
    with torch.no_grad():
        table[0, 1:] = _sinusoids(4, 192)
    found = run_on(PatchExact(), observe_pictures(subject, photographs(32), chain="frozen_embeddings()"))
    assert found.status is Status.NOT_APPLICABLE
    assert "9 dimensions" in found.message, "(√n − 1)² of a two-dimensional table"


@pytest.mark.contract
def test_positions_inside_the_attention_leave_no_table() -> None:
    subject = vision_subject("data2vec-vision")
    found = run_on(PatchExact(), observe_pictures(subject, photographs(32)))
    assert found.status is Status.NOT_APPLICABLE and "inside the attention" in found.message


@pytest.mark.contract
def test_adamw_is_refused() -> None:
    observation = observe_pictures(vision_subject(), photographs(32), share="delta", optimizer="adamw")
    found = run_on(PatchExact(), observation)
    assert found.status is Status.NOT_APPLICABLE and "AdamW" in found.message


@pytest.mark.contract
def test_rounding_is_answered_with_a_picture_that_is_not_certified() -> None:
    pixels = photographs(32)
    found = run_on(PatchExact(), observe_pictures(vision_subject(patch_size=16), pixels, dtype="bf16"))
    assert found.status is Status.UNDECIDED
    assert largest_error(found, pixels) < 0.05
    assert found.statistics["expected_error"] < 0.01


def _sinusoids(side: int, width: int) -> torch.Tensor:
    """The usual table of two dimensions: half of the width for rows, half for columns."""
    rates = 10000.0 ** (-torch.arange(width // 4) / (width / 4))
    angles = torch.arange(side)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.cat([line.repeat_interleave(side, 0), line.repeat(side, 1)], 1)
