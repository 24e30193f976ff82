"""The floor for pictures against finite differences of the clipped gradient and the closed form of van Trees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradleak.core.batch import Batch, soft_labels
from gradleak.harness.bounds.pixels import ErrorFloor
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject
from gradleak.privacy.bounds import cramer_rao

pytestmark = pytest.mark.oracle

SETTINGS = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 4,
    "patch_size": 2,
    "num_channels": 1,
}


@pytest.mark.parametrize("max_norm", [0.05, 100.0])
def test_the_product_is_the_information_of_the_clipped_gradient(max_norm: float) -> None:
    """Active clip and idle clip. The floor is below the exact value, by its own error at most.

    A part of the forward pass works in float32, so that no step brings the differences nearer than 3e-5 to the derivative.
    """
    subject = load_subject("random:vit", settings=SETTINGS, seed=0)
    subject.module.double()
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    rng = torch.Generator().manual_seed(0)
    pictures = torch.rand(6, 1, 4, 4, generator=rng).double()
    batch = Batch(inputs=pictures, mask=torch.ones(6, dtype=torch.bool), labels=torch.tensor([0, 1, 0, 1, 0, 1]))
    floor = ErrorFloor.of(trainer, batch, max_norm, seed=0)

    def clipped(x: torch.Tensor, label: torch.Tensor) -> np.ndarray:
        # Not ``update``: that is rounded to the number format in which it is shared.
        made = trainer.replay(x, soft_labels(label, 2).double(), torch.ones(1, dtype=torch.bool))
        g = torch.cat([t.flatten() for t in made.values()]).detach().numpy()
        return g * min(1.0, max_norm / float(np.linalg.norm(g)))

    informations, step = [], 1e-3
    for place, point in enumerate(floor.points):
        label = floor.labels[place : place + 1]
        columns = []
        for k in range(16):
            shift = torch.zeros(16, dtype=torch.float64)
            shift[k] = step
            shift = shift.reshape(1, 1, 4, 4)
            columns.append((clipped(point + shift, label) - clipped(point - shift, label)) / (2 * step))
        informations.append(np.stack(columns, 1).T @ np.stack(columns, 1) / max_norm**2)
    basis = torch.eye(16, dtype=torch.float64).reshape(16, 1, 1, 4, 4)
    found = torch.stack([floor._product(each).flatten() for each in basis]).numpy()  # pyright: ignore[reportPrivateUsage]
    assert found == pytest.approx(np.mean(informations, axis=0), abs=2e-4 * np.abs(found).max())
    for z in (0.01, 1.0, 100.0):
        exact = cramer_rao.van_trees([each / z**2 for each in informations], np.eye(16) / floor.prior_std**2)
        at = floor.at(z)
        assert 0 <= at.mean_square <= exact + 3 * at.standard_error + 1e-9
    assert at.share == pytest.approx(1.0, abs=1e-3), "nothing is learned behind so much noise"
