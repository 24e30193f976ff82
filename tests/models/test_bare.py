"""The layer of the theory: its output and gradient against the closed forms written out, and what cannot be built."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.errors import ModelError, UnknownNameError
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models.bare import BareAttention, load_bare

pytestmark = pytest.mark.oracle


def test_logits_are_half_squared_distances_of_plain_attention() -> None:
    subject = load_bare("bare:attention", loss=None, classes=3, settings={"hidden_size": 6, "seq_len": 4}, seed=1)
    module = subject.module
    pixels = torch.rand(2, *subject.pixel_shape, generator=derive(0, "bare"))
    x = ((pixels[:, 0] - 0.5) * 6).double()
    weights = {name: value.double() for name, value in subject.parameters().items()}
    out = torch.zeros_like(x)
    for head in range(2):
        part = slice(3 * head, 3 * head + 3)
        q, k, v = (x @ weights[f"{name}.weight"].T for name in ("query", "key", "value"))
        scores = (q[..., part] @ k[..., part].mT / 3**0.5).softmax(-1)
        out[..., part] = scores @ v[..., part]
    out = out @ weights["output.weight"].T
    targets = module.get_buffer("targets").double()
    wanted = torch.stack([-0.5 * (out - t).square().sum((1, 2)) for t in targets], 1)
    torch.testing.assert_close(subject.logits(None, inputs=pixels).double(), wanted, rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_the_mean_squared_loss() -> None:
    subject = load_bare("bare:attention", loss=None, classes=2, settings={}, seed=0)
    pixels, labels = torch.rand(3, *subject.pixel_shape, generator=derive(1, "bare")), torch.tensor([0, 1, 1])
    batch = Batch(inputs=pixels, mask=torch.ones(3, dtype=torch.bool), labels=labels)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0))
    loss = -subject.logits(None, inputs=pixels)[torch.arange(3), labels].mean()
    loss.backward()
    for name, parameter in subject.module.named_parameters():
        torch.testing.assert_close(update[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_the_seed_decides_weights_and_targets() -> None:
    one, same, other = (
        load_bare("bare:attention", loss=None, classes=2, settings={}, seed=s).module for s in (1, 1, 2)
    )
    assert torch.equal(one.query.weight, same.query.weight) and torch.equal(one.targets, same.targets)
    assert not torch.equal(one.query.weight, other.query.weight)


def test_the_anatomy_names_four_maps_and_no_head() -> None:
    anatomy = load_bare("bare:attention", loss=None, classes=2, settings={}, seed=0).anatomy
    assert [m.weight for m in anatomy.blocks[0].maps()] == [f"{n}.weight" for n in ("query", "key", "value", "output")]
    assert anatomy.head is None and anatomy.blocks[0].heads == 2 and anatomy.hidden_size == 16


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"name": "bare:mlp"}, ModelError, "bare:attention with loss squared"),
        ({"loss": "classification"}, ModelError, "not bare:attention with classification"),
        ({"settings": {"width": 3}}, UnknownNameError, "setting of bare:attention"),
        ({"settings": {"seq_len": 0}}, ModelError, "positive whole numbers"),
        ({"settings": {"hidden_size": "2.5"}}, ModelError, "positive whole numbers"),
        ({"settings": {"hidden_size": 5}}, ModelError, "multiple of the number of heads"),
    ],
)
def test_what_cannot_be_built_is_refused(changed: dict[str, object], error: type[Exception], words: str) -> None:
    plain: dict[str, object] = {"name": "bare:attention", "loss": None, "classes": 2, "settings": {}, "seed": 0}
    arguments = plain | changed
    name = arguments.pop("name")
    with pytest.raises(error, match=words):
        load_bare(name, **arguments)  # type: ignore[arg-type]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ModelError, match="4 and 3"):
        BareAttention(heads=3, targets=torch.zeros(1, 2, 4))
