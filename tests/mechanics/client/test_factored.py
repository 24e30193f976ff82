"""The factored gradients against autograd, on one small random model of every family; training against torch's own loop."""

from __future__ import annotations

import copy

import pytest
import torch

from gradleak.core.batch import IGNORED, Batch, soft_labels
from gradleak.mechanics.client.factored import simulate_gradients
from gradleak.mechanics.client.outer_products import FactoredMatrix
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.oracle

DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "opt", "gpt_neox", "phi")
ENCODERS = ("bert", "roberta", "distilbert")
CASES = (
    [(name, "classification") for name in (*DECODERS, *ENCODERS, "vit")]
    + [(name, "causal-lm") for name in DECODERS]
    + [(name, "masked-lm") for name in ENCODERS]
)


def tiny(name: str, loss: str) -> Subject:
    settings: dict[str, object] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings |= {"image_size": 16, "patch_size": 8} if name == "vit" else {"vocab_size": 300}
    return load_subject(f"random:{name}", loss=loss, settings=settings, seed=0)


def private_batch(subject: Subject) -> Batch:
    rng = torch.Generator().manual_seed(0)
    if subject.modality == "image":
        pixels = torch.rand(2, 3, 16, 16, generator=rng)
        return Batch(inputs=pixels, mask=torch.ones(2, dtype=torch.bool), labels=torch.tensor([0, 1]))
    ids = torch.randint(10, 250, (2, 6), generator=rng)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    labels = torch.tensor([0, 1])
    if subject.loss.name == "causal-lm":
        labels = torch.where(mask, ids, IGNORED)
    elif subject.loss.name == "masked-lm":
        labels = torch.where((torch.arange(6) % 3 == 1) & mask, ids, IGNORED)
    return Batch(inputs=ids, mask=mask, labels=labels)


def candidate(subject: Subject, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = batch.inputs if subject.modality == "image" else subject.embed(batch.inputs).detach()
    return inputs, soft_labels(batch.labels, subject.classes)


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_factored_gradients_equal_the_clients_for_each_restart(name: str, loss: str) -> None:
    subject = tiny(name, loss)
    trainer, batch = ClientTrainer(subject=subject, training=LocalTraining()), private_batch(subject)
    update = trainer.update(batch, torch.Generator())
    names = tuple(n for n in trainer.names() if n != subject.anatomy.token_embedding)
    x, y = candidate(subject, batch)
    mask = batch.mask.repeat(2, *[1] * (batch.mask.ndim - 1))
    found = simulate_gradients(subject, names, torch.cat([x + 0.01, x]), torch.cat([y, y]), mask, restarts=2)
    assert found is not None
    found = {n: part if isinstance(part, FactoredMatrix) else part.detach() for n, part in found.items()}
    replayed = {n: t.detach() for n, t in trainer.replay(x + 0.01, y, batch.mask).items()}
    floor = 1e-6 * update.norm()
    assert all(float(update[n].norm()) <= floor for n in names if n not in found)
    for n, part in found.items():
        dense = part.dense().detach() if isinstance(part, FactoredMatrix) else part
        assert float((dense[0].reshape(update[n].shape) - replayed[n]).norm()) <= floor, n
        assert float((dense[1].reshape(update[n].shape) - update[n]).norm()) <= floor, n


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_delta_equals_torchs_own_training_loop(optimizer: str) -> None:
    subject = tiny("bert", "classification")
    batch = private_batch(subject)
    training = LocalTraining(share="delta", steps=4, lr=1e-2, optimizer=optimizer, weight_decay=0.1)
    delta = ClientTrainer(subject=subject, training=training).update(batch, torch.Generator())
    module = copy.deepcopy(subject.module)
    kinds = {
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
        "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    }
    stepper = kinds[optimizer](module.parameters())
    for _ in range(4):
        stepper.zero_grad()
        logits = module(input_ids=batch.inputs, attention_mask=batch.mask.long()).logits
        torch.nn.functional.cross_entropy(logits, batch.labels).backward()
        stepper.step()
    for name, after in module.named_parameters():
        before = subject.module.get_parameter(name)
        if after.grad is None or float(after.grad.norm()) < 1e-7:
            continue  # AdamW divides rounding noise by itself there; no two computations agree on it
        torch.testing.assert_close(delta[name], (after - before).detach(), rtol=2e-2, atol=2e-4)


def test_idle_rows_of_adamw_are_told_from_trained_ones() -> None:
    subject = tiny("bert", "classification")
    batch = private_batch(subject)
    trainer = ClientTrainer(subject=subject, training=LocalTraining(share="delta", steps=3, optimizer="adamw"))
    name = subject.anatomy.token_embedding
    assert name is not None
    moved = (trainer.update(batch, torch.Generator())[name] - trainer.idle(name)).abs().amax(1) > 1e-6
    used = torch.zeros_like(moved)
    used[batch.inputs[batch.mask]] = True
    assert torch.equal(moved, used)


def test_dropout_draws_from_the_given_generator_and_leaves_the_model_in_eval_mode() -> None:
    subject = tiny("bert", "classification")
    trainer, batch = ClientTrainer(subject=subject, training=LocalTraining(dropout=True)), private_batch(subject)
    name = subject.anatomy.blocks[0].mlp_output.weight
    one, same, other = (trainer.update(batch, torch.Generator().manual_seed(s))[name] for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not subject.module.training
