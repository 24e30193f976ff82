"""Whole batches come out exactly and certified; what is not certified is not called exact; refusals name the reason."""

from __future__ import annotations

import pytest
import torch

from gradleak.attacks.patch_batch import PatchBatch
from gradleak.core.attack import Clock, Status
from tests.support.vision import largest_error, observe_pictures, photographs, run_on, vision_subject

HALF_LEVEL = 0.5 / 255


@pytest.mark.contract
@pytest.mark.parametrize("chain", ["none", "frozen_embeddings()"])
@pytest.mark.parametrize("records", [1, 2, 3])
def test_exact_without_labels(records: int, chain: str) -> None:
    pixels = photographs(32, records)
    found = run_on(PatchBatch(), observe_pictures(vision_subject(patch_size=16), pixels, chain=chain))
    assert found.status is Status.EXACT, found.message
    assert largest_error(found, pixels) < HALF_LEVEL
    assert found.labels is not None and sorted(found.labels) == list(range(records))


@pytest.mark.contract
@pytest.mark.parametrize("kind", ["deit", "ijepa"])
def test_other_structures(kind: str) -> None:
    pixels = photographs(32, 2, first=1)
    found = run_on(PatchBatch(), observe_pictures(vision_subject(kind, patch_size=16), pixels))
    assert found.status is Status.EXACT, found.message
    assert largest_error(found, pixels) < HALF_LEVEL


@pytest.mark.contract
def test_two_classes_and_equal_labels_are_no_obstacle() -> None:
    """The head's gradient has rank one then; the labels are read from the patch map."""
    pixels = photographs(32, 3)
    found = run_on(PatchBatch(), observe_pictures(vision_subject(patch_size=16, classes=2), pixels))
    assert found.status is Status.EXACT, found.message
    assert found.labels is not None and sorted(found.labels) == [0, 0, 1]


@pytest.mark.contract
def test_an_update_of_other_weights_is_never_called_exact() -> None:
    pixels = photographs(32, 2)
    observation = observe_pictures(vision_subject(patch_size=16), pixels)
    other = observe_pictures(vision_subject(patch_size=16, seed=3), pixels)
    facts = dict(other.knowledge.facts)
    mixed = type(observation)(update=observation.update, knowledge=type(other.knowledge)(facts=facts))
    found = run_on(PatchBatch(restarts=1, iterations=5), mixed)
    assert found.status is Status.UNDECIDED
    assert found.certificate is not None and found.certificate > 1e-3


@pytest.mark.contract
def test_noise_is_never_called_exact() -> None:
    pixels = photographs(32, 2)
    observation = observe_pictures(vision_subject(patch_size=16), pixels, chain="gaussian(relative_std=0.01)")
    assert run_on(PatchBatch(restarts=1, iterations=5, joint=0), observation).status is Status.UNDECIDED


@pytest.mark.contract
def test_a_spent_clock_ends_it() -> None:
    observation = observe_pictures(vision_subject(patch_size=16), photographs(32, 3))
    found = run_on(PatchBatch(), observation, clock=Clock(0.0))
    assert found.status is Status.BUDGET_SPENT


@pytest.mark.contract
@pytest.mark.parametrize(
    ("training", "word"),
    [
        ({"dropout": True}, "dropout"),
        ({"share": "delta", "steps": 2}, "one"),
        ({"share": "delta", "optimizer": "adamw"}, "SGD"),
    ],
)
def test_clients_that_cannot_be_replayed_are_refused(training: dict[str, object], word: str) -> None:
    found = run_on(PatchBatch(), observe_pictures(vision_subject(patch_size=16), photographs(32, 2), **training))
    assert found.status is Status.NOT_APPLICABLE and word in found.message


@pytest.mark.contract
def test_more_patches_than_the_width_holds_are_refused() -> None:
    subject = vision_subject(hidden_size=48)
    found = run_on(PatchBatch(), observe_pictures(subject, photographs(32, 4)))
    assert found.status is Status.NOT_APPLICABLE and "width of at least 64" in found.message


@pytest.mark.contract
def test_draws_decide_nothing_that_is_exact() -> None:
    pixels = photographs(32, 2)
    observation = observe_pictures(vision_subject(patch_size=16), pixels)
    found = [run_on(PatchBatch(), observation, seed) for seed in range(2)]
    assert all(each.status is Status.EXACT and largest_error(each, pixels) < HALF_LEVEL for each in found)
    assert torch.isfinite(torch.stack(found[0].records)).all()
