"""The convolutional bottleneck stands behind one block, leaves the given model alone, and refuses models without a grid."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.errors import ModelError, SpecError
from gradleak.defenses.cvb import CVB
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject
from tests.support.tiny import image_batch, image_model, text_model

pytestmark = pytest.mark.contract


@pytest.fixture(scope="module")
def vit() -> Subject:
    return image_model("vit")


def test_the_given_model_stays_as_it_is(vit: Subject) -> None:
    before, batch = dict(vit.parameters()), image_batch(vit)
    logits = vit.logits(None, inputs=batch.inputs, mask=batch.mask)
    changed = CVB().change(vit)
    assert set(vit.parameters()) == set(before)
    torch.testing.assert_close(vit.logits(None, inputs=batch.inputs, mask=batch.mask), logits)
    assert not torch.allclose(changed.logits(None, inputs=batch.inputs, mask=batch.mask), logits)


@pytest.mark.parametrize("block", [0, 1])
def test_it_stands_behind_the_block_and_shares_all_old_weights(vit: Subject, block: int) -> None:
    changed = CVB(block=block).change(vit)
    new = set(changed.parameters()) - set(vit.parameters())
    home = vit.anatomy.blocks[block].path
    assert new and all(name.startswith(f"{home}.cvb.") for name in new)
    for name, value in vit.parameters().items():
        assert torch.equal(changed.parameters()[name], value)


def test_the_seed_decides_the_new_weights_and_nothing_else_does(vit: Subject) -> None:
    state = torch.get_rng_state()
    one, same, other = (CVB(seed=s).change(vit).parameters() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    name = next(name for name in one if ".cvb." in name)
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


def test_an_attacker_leaves_out_what_stands_behind_but_matches_the_encoder(vit: Subject) -> None:
    stage = CVB(block=0)
    trainer = ClientTrainer(subject=stage.change(vit), training=LocalTraining())
    ignored, home = stage.ignored(trainer), vit.anatomy.blocks[0].path
    assert f"{home}.cvb.encoder.weight" not in ignored
    assert any(name.startswith(vit.anatomy.blocks[1].path) for name in ignored)
    below = {name for name in vit.parameters() if "embed" in name or name.startswith(home)}
    assert below and not ignored & below


def test_text_and_blocks_that_are_not_there_are_refused(vit: Subject) -> None:
    with pytest.raises(ModelError, match="reads text"):
        CVB().change(text_model("bert"))
    with pytest.raises(ModelError, match="has 2 blocks, so there is no block 2"):
        CVB(block=2).change(vit)
    for wrong in ({"kernel": 2}, {"block": -1}, {"beta": -0.1}):
        with pytest.raises(SpecError, match="out of range"):
            CVB(**wrong)
