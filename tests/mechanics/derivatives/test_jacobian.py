"""Products with the Jacobian of an update, and quadrature, against dense derivations in float64."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import soft_labels
from gradleak.core.errors import UsageError
from gradleak.mechanics.attention.softmax import Heads, data_jacobian
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.derivatives.jacobian import Jacobian, attention_jacobian, flatten, linearize, update_jacobian
from gradleak.models import load_subject

pytestmark = pytest.mark.oracle

TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@cache
def client(model: str, loss: str, share: str) -> tuple[ClientTrainer, Tensor, Tensor, Tensor]:
    """A trainer in float64 with one batch, as embeddings or pixels."""
    vision = model == "vit"
    settings = {"image_size": 8, "patch_size": 4} if vision else {"vocab_size": 260, "max_position_embeddings": 8}
    subject = load_subject(f"random:{model}", loss=loss, settings={**TINY, **settings})
    subject.module.double()
    training = LocalTraining() if share == "gradient" else LocalTraining(share="delta", steps=2, lr=0.1)
    if vision:
        inputs, mask = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.ones(2, dtype=torch.bool)
        labels = torch.tensor([0, 1])
    else:
        ids = torch.tensor([[5, 9, 11], [7, 30, 2]])
        inputs, mask = subject.embed(ids).detach(), torch.ones_like(ids, dtype=torch.bool)
        labels = ids if loss == "causal-lm" else torch.tensor([0, 1])
    trainer = ClientTrainer(subject=subject, training=training)
    return trainer, inputs, soft_labels(labels, subject.classes).double(), mask


CASES = [
    ("bert", "classification", "gradient"),
    ("gpt2", "causal-lm", "gradient"),
    ("llama", "causal-lm", "gradient"),
    ("vit", "classification", "gradient"),
    ("gpt2", "causal-lm", "delta"),
]


@pytest.mark.parametrize(("model", "loss", "share"), CASES)
def test_products_with_a_real_update(model: str, loss: str, share: str) -> None:
    trainer, inputs, targets, mask = client(model, loss, share)
    jacobian = update_jacobian(trainer, inputs, targets, mask)
    v = inputs.std() * normal(*inputs.shape, seed=1)
    r = {name: normal(*t.shape, seed=2) for name, t in jacobian.update.items()}
    forward = jacobian.forward(v)
    left, right = flatten(forward) @ flatten(r), (v * jacobian.adjoint(r)).sum()
    # Llama's norms and the softmax of ViT and Llama run in float32 whatever the model's own format is.
    adjoint, step, difference = (1e-7, 1e-3, 1e-3) if model in {"llama", "vit"} else (1e-12, 1e-6, 1e-6)
    assert abs(float(left - right)) < adjoint * float(flatten(forward).norm() * flatten(r).norm())
    ahead, behind = (trainer.replay(inputs + t * v, targets, mask) for t in (step, -step))
    differences = (flatten(ahead) - flatten(behind)).detach() / (2 * step)
    assert float((differences - flatten(forward)).norm() / differences.norm()) < difference


def test_closed_form_and_autograd_are_one_jacobian() -> None:
    heads = Heads(
        query=normal(2, 4, 2, seed=1),
        key=normal(2, 4, 2, seed=2),
        value=normal(2, 4, 2, seed=3),
        output=normal(2, 2, 3, seed=4),
        scale=0.7,
    )
    x, b = normal(3, 4, seed=5), normal(3, 3, seed=6)
    point = heads.layer().at(x, b)
    closed = attention_jacobian(point, heads)

    def gradient(x: Tensor) -> dict[str, Tensor]:
        found = heads.split(heads.layer().at(x, b).gradient())
        return {"query": found.query, "key": found.key, "value": found.value, "output": found.output}

    by_autograd = linearize(gradient, x)
    wanted = data_jacobian(point, heads)
    for found in (closed.dense(), by_autograd.dense()):
        assert float((found - wanted).norm() / wanted.norm()) < 1e-12
    v = normal(3, 4, seed=7)
    assert torch.allclose(closed.normal(v), by_autograd.normal(v), rtol=1e-10)


def test_what_has_no_jacobian_is_refused() -> None:
    with pytest.raises(UsageError, match="depends on the data"):
        linearize(lambda x: {"a": torch.ones(3)}, torch.ones(2))
    trainer, inputs, targets, mask = client("bert", "classification", "gradient")
    with pytest.raises(UsageError, match="not a trained parameter"):
        update_jacobian(trainer, inputs, targets, mask, names=("nothing",))


def test_a_jacobian_is_its_products() -> None:
    matrix = normal(5, 6, seed=0)
    made = Jacobian(
        shape=(2, 3),
        update={"a": torch.zeros(5, dtype=torch.float64)},
        forward=lambda v: {"a": matrix @ v.flatten()},
        adjoint=lambda r: (matrix.T @ r["a"]).view(2, 3),
    )
    assert torch.equal(made.dense(), matrix) and made.unknowns == 6
