"""What is predicted of patches is what the closed form finds, on both sides of each width."""

from __future__ import annotations

import pytest

from gradleak.attacks.patch_exact import PatchExact
from gradleak.core.attack import Status
from gradleak.core.errors import NotApplicableError
from gradleak.models import load_subject
from gradleak.theory.identifiability.patches import predict_patches
from tests.support.vision import observe_pictures, photographs, run_on, vision_subject


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("width", "chain", "law"),
    [(18, "none", 0), (15, "none", 0), (36, "frozen_embeddings()", 1), (33, "frozen_embeddings()", 1)],
)
def test_the_attack_confirms_the_law(width: int, chain: str, law: int) -> None:
    """16 patches; frozen: a class token and the all-ones vector more. Below, an answer is refused or not certified."""
    subject = vision_subject(hidden_size=width)
    holds = predict_patches(subject, records=1).laws[law].holds
    found = run_on(PatchExact(iterations=1), observe_pictures(subject, photographs(32), chain=chain))
    certified = found.certificate is not None and found.certificate < 1e-2 and found.status is not Status.NOT_APPLICABLE
    below = found.status is Status.NOT_APPLICABLE or "not unique" in found.message
    assert holds == (width in (18, 36))
    assert certified if holds else below


@pytest.mark.contract
def test_several_records_leave_dimensions_open() -> None:
    found = predict_patches(vision_subject(), records=3)
    trained, frozen = found.laws
    assert (trained.needs, trained.open_dimensions, trained.holds) == (48, 32, True)
    assert (frozen.needs, frozen.open_dimensions, frozen.holds) == (66, 32, True)
    assert "patch_batch" in trained.reason


@pytest.mark.contract
def test_positions_inside_the_attention_close_both_ways() -> None:
    found = predict_patches(vision_subject("data2vec-vision"), records=1)
    assert [law.holds for law in found.laws] == [False, False]
    assert found.laws[1].open_dimensions == 16, "the patch map of random weights has a bias of zero"


@pytest.mark.errors
def test_a_model_of_text_is_refused() -> None:
    subject = load_subject(
        "random:bert", settings={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    )
    with pytest.raises(NotApplicableError, match="does not cut pictures"):
        predict_patches(subject, records=1)
