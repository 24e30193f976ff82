"""The equations hold for the records of the batch and for no others; two-block models train keys and values of every token."""

from __future__ import annotations

import pytest
import torch

from gradleak.attacks.patch_batch import PatchBatch
from gradleak.attacks.patch_batch.equations import read_equations
from gradleak.attacks.patch_batch.one_record import jacobian
from gradleak.attacks.patch_batch.reading import BatchCase
from gradleak.core.knowledge import Observation
from tests.support.vision import observe_pictures, photographs, vision_subject


def case_of(observation: Observation) -> BatchCase:
    return BatchCase.of_view(observation.update, observation.knowledge.view(PatchBatch.needs | PatchBatch.uses))


@pytest.mark.oracle
@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("kind", ["vit", "ijepa"])
def test_hold_for_the_records_alone(kind: str, blocks: int) -> None:
    pixels = photographs(32, 4)
    subject = vision_subject(kind, patch_size=16, num_hidden_layers=blocks)
    equations = read_equations(case_of(observe_pictures(subject, pixels[:2])))
    off = equations(pixels.double()).norm(dim=1)
    assert float(off[:2].max()) < 3e-3
    assert float(off[2:].min()) > 20 * float(off[:2].max())


@pytest.mark.oracle
def test_jacobian_is_that_of_finite_differences() -> None:
    pixels = photographs(32, 2)
    equations = read_equations(case_of(observe_pictures(vision_subject(patch_size=16), pixels)))
    ways = torch.randn(3, 3 * 32 * 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def along(c: torch.Tensor) -> torch.Tensor:
        return equations((pixels[:1].double().flatten() + c @ ways).reshape(1, 3, 32, 32))[0]

    start, step = torch.zeros(3, dtype=torch.float64), 1e-4
    found = jacobian(along, start)
    for j in range(3):
        bump = torch.zeros(3, dtype=torch.float64)
        bump[j] = step
        wanted = (along(bump) - along(-bump)) / (2 * step)
        assert float((found[:, j] - wanted).norm() / wanted.norm()) < 1e-5
