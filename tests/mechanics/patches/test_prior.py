"""The prior's factored forms against its covariance written out."""

from __future__ import annotations

import pytest
import torch

from gradleak.mechanics.patches.prior import PicturePrior

pytestmark = pytest.mark.oracle

SHAPE, PATCH = (2, 6, 4), (3, 2)


def written_out(prior: PicturePrior) -> torch.Tensor:
    """Covariance of all pixels, entry by entry."""
    channels, height, width = prior.shape
    places = [(c, i, j) for c in range(channels) for i in range(height) for j in range(width)]
    made = torch.zeros(len(places), len(places), dtype=torch.float64)
    for a, (c, i, j) in enumerate(places):
        for b, (d, k, m) in enumerate(places):
            far = abs(i - k) + abs(j - m)
            color = 1.0 if c == d else prior.color
            made[a, b] = prior.std**2 * color * torch.exp(torch.tensor(-far / prior.length, dtype=torch.float64))
    return made


def patch_places() -> torch.Tensor:
    """Indices of pixels, ``[patches features]``, in the order of ``unfold``."""
    numbered = torch.arange(2 * 6 * 4, dtype=torch.float64).reshape(1, *SHAPE)
    return torch.nn.functional.unfold(numbered, PATCH, stride=PATCH)[0].T.long()


@pytest.mark.oracle
def test_coloring_is_a_root_of_the_covariance() -> None:
    prior = PicturePrior.for_shape(SHAPE)
    root = prior.colored(torch.eye(48, dtype=torch.float64).reshape(48, *SHAPE)).reshape(48, 48)
    assert torch.allclose(root.T @ root, written_out(prior), atol=1e-12)


@pytest.mark.oracle
def test_patch_covariance_is_a_block() -> None:
    prior = PicturePrior.for_shape(SHAPE)
    first = patch_places()[0]
    assert torch.allclose(prior.patch_covariance(PATCH), written_out(prior)[first][:, first], atol=1e-12)


@pytest.mark.oracle
def test_components_have_the_covariances_of_the_coefficients() -> None:
    prior = PicturePrior.for_shape(SHAPE)
    basis, covariances = prior.components(PATCH)
    assert torch.allclose(basis.T @ basis, torch.eye(12, dtype=torch.float64), atol=1e-12)
    whole, places = written_out(prior), patch_places()
    for j in range(12):
        for p in range(4):
            for q in range(4):
                block = whole[places[p]][:, places[q]]
                assert torch.allclose(basis[:, j] @ block @ basis[:, j], covariances[j, p, q], atol=1e-12)
