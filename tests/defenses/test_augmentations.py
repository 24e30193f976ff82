"""Every augmentation changes its image as its name says, keeps the box and has a slope."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.rng import derive
from gradleak.defenses._augmentations import COUNT, augment

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("number", range(COUNT))
def test_every_change_changes_keeps_the_box_and_has_a_slope(number: int) -> None:
    images = torch.rand(2, 3, 8, 8, generator=derive(0, "images")).requires_grad_()
    found = augment(images, (number,))
    assert found.shape == images.shape and not torch.equal(found, images)
    assert bool(((found >= 0.0) & (found <= 1.0)).all())
    (slope,) = torch.autograd.grad(found.sum(), images)
    assert bool(torch.isfinite(slope).all()) and bool((slope != 0).any())


def test_changes_are_what_their_names_say() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, :4] = 1.0
    assert torch.equal(augment(image, (35,)), 1.0 - image), "solarize from 0 on inverts"
    torch.testing.assert_close(augment(image, (14,)), torch.rot90(image, 1, (2, 3)), atol=1e-5, rtol=0)
    moved = augment(image, (34,))
    torch.testing.assert_close(moved[0, 0], torch.zeros(8, 8), atol=1e-5, rtol=0)
