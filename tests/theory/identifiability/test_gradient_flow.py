"""The two factors of a weight gradient, against the gradient itself."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.theory.identifiability.gradient_flow import flow_through
from tests.support.tiny import text_batch, text_model

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(
    ("kind", "loss"),
    [("gpt2", "classification"), ("bert", "classification"), ("llama", "causal-lm"), ("bert", "masked-lm")],
)
def test_inputs_times_errors_is_the_gradient_of_every_map(kind: str, loss: str) -> None:
    subject = text_model(kind, loss=loss)
    batch = text_batch(subject, (6, 4))
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0))
    maps = [m for block in subject.anatomy.blocks for m in block.maps()]
    flows = flow_through(subject, batch, [m.module for m in maps])
    for m in maps:
        flow = flows[m.module]
        made = flow.inputs.flatten(0, 1).T @ flow.errors.flatten(0, 1)
        torch.testing.assert_close(made, m.as_matrix(update[m.weight]).T, rtol=1e-3, atol=1e-6)


def test_double_precision_leaves_the_model_as_it_is() -> None:
    subject = text_model("gpt2")
    batch, path = text_batch(subject), subject.anatomy.blocks[0].attention_output.module
    before = {name: value.clone() for name, value in subject.parameters().items()}
    exact = flow_through(subject, batch, [path], dtype=torch.float64)[path]
    assert exact.errors.dtype is torch.float64
    torch.testing.assert_close(
        flow_through(subject, batch, [path])[path].errors.double(), exact.errors, rtol=1e-3, atol=1e-7
    )
    assert all(torch.equal(before[name], value) for name, value in subject.parameters().items())
    assert not any(p.grad is not None for p in subject.module.parameters())
