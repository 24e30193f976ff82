"""The factored first test against the plain one: every pair of token and position, formed and projected."""

from __future__ import annotations

import pytest
import torch

from gradleak.mechanics.probing.first_input import FirstInput, Norm
from gradleak.mechanics.subspace.subspace import Subspace
from gradleak.span.candidates.factored_test import FactoredTest

pytestmark = pytest.mark.oracle

FEATURES, VOCAB, POSITIONS, RANK = 48, 200, 5, 6


def subspace(rng: torch.Generator) -> Subspace:
    basis = torch.linalg.qr(torch.randn(FEATURES, RANK, generator=rng, dtype=torch.float64)).Q
    singular = torch.linspace(1e3, 1e5, RANK, dtype=torch.float64)
    return Subspace(
        basis=basis, singular=singular, spectrum=singular, noise=1.0, precision=1e-7, edge=1.0, inputs=basis.shape[1]
    )


def law_of(rng: torch.Generator, *, centered: bool, normalized: bool) -> FirstInput:
    norm = Norm(
        gain=torch.rand(FEATURES, generator=rng) + 0.5 if normalized else torch.ones(FEATURES),
        offset=0.3 * torch.randn(FEATURES, generator=rng) if normalized else torch.zeros(FEATURES),
        centered=centered,
        normalized=normalized,
    )
    return FirstInput(
        table=torch.randn(VOCAB, FEATURES, generator=rng),
        scale=1.5,
        positions=torch.randn(POSITIONS, FEATURES, generator=rng),
        norm=norm,
    )


@pytest.mark.parametrize(("centered", "normalized"), [(True, True), (False, True), (False, False)])
def test_residuals_are_those_of_the_pairs_themselves(centered: bool, normalized: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    space, law = subspace(rng), law_of(rng, centered=centered, normalized=normalized)
    x = law.norm.center((law.scale * law.table).double().unsqueeze(1) + law.positions.double())
    sigma = x.square().mean(-1, keepdim=True).sqrt() if normalized else torch.ones(1)
    z = law.norm.gain.double() * x / sigma + law.norm.offset.double()
    residual, expected = FactoredTest.of(law, space, rng).sharpened().judge(torch.arange(VOCAB))
    outside = space.outside(z)
    if normalized:
        # The factored test gives up the one direction that the offset takes.
        beyond = space.outside(law.norm.offset)
        unit = beyond / beyond.norm()
        outside = outside - (outside @ unit).unsqueeze(-1) * unit
    assert torch.allclose(residual, outside.norm(dim=-1) / z.norm(dim=-1), rtol=1e-6, atol=1e-9)
    # Sixteen random columns keep the tilt's length within 18 % (one standard deviation).
    assert float((expected / space.expected(z)).log().abs().max()) < 1.0


def test_a_token_whose_part_cancels_against_its_position_is_not_missed() -> None:
    """Token and position are far outside the space, their sum is a member: in float32 that cancels to 1e-3 at best."""
    rng = torch.Generator().manual_seed(1)
    space, law = subspace(rng), law_of(rng, centered=False, normalized=False)
    members = torch.randn(POSITIONS, RANK, generator=rng, dtype=torch.float64) @ space.basis.T
    law.table[:POSITIONS] = ((members - law.positions.double()) / law.scale).float()
    test = FactoredTest.of(law, space, rng)
    residual, _ = test.judge(torch.arange(POSITIONS))
    assert float(residual.diagonal().max()) < 1e-6
    found = test.screen(1e-6)
    assert set(range(POSITIONS)) <= set(found.tolist())
    assert test.nearest(torch.arange(POSITIONS)).tolist() == list(range(POSITIONS))
    assert len(found) < VOCAB / 2
