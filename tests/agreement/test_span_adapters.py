"""Exact records from gradients of low-rank adapters that the PEFT library put into a model and torch differentiated."""

from __future__ import annotations

import pytest
import torch

from gradleak.attacks.span import Span
from gradleak.core.attack import Reconstruction, Status
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import LoRA, Subject, load_subject, with_lora

SIZES = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 4, "vocab_size": 1000}


def adapted(model: str, rank: int, b_std: float) -> Subject:
    loss = "classification" if model == "bert" else "causal-lm"
    subject = load_subject(f"random:{model}", loss=loss, settings=SIZES, seed=1)
    return with_lora(subject, LoRA(rank=rank, b_std=b_std), seed=1)


def batch_of(subject: Subject, records: int, length: int) -> Batch:
    ids = torch.randint(subject.anatomy.vocab_size, (records, length), generator=derive(1, "ids"))
    labels = ids if subject.loss.name == "causal-lm" else torch.arange(records) % subject.classes
    return Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)


def gradients(subject: Subject, batch: Batch) -> Update:
    """Of the adapters only, by the model's own backward pass."""
    subject.module.zero_grad()
    logits = subject.module(input_ids=batch.inputs).logits
    if subject.loss.name == "causal-lm":
        logits, labels = logits[:, :-1].flatten(0, 1), batch.inputs[:, 1:].flatten()
    else:
        labels = batch.labels
    torch.nn.functional.cross_entropy(logits, labels).backward()
    return Update({name: p.grad.clone() for name, p in subject.module.named_parameters() if p.grad is not None})


def attack(subject: Subject, batch: Batch, update: Update, training: LocalTraining | None = None) -> Reconstruction:
    facts: dict[str, object] = {"subject": subject, "batch_size": len(batch.inputs), "seq_len": batch.inputs.shape[1]}
    if training is not None:
        facts["trainer"] = ClientTrainer(subject=subject, training=training)
    return Span()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(1, "attack"))


def exact(found: Reconstruction, subject: Subject, batch: Batch) -> bool:
    """Whether all records came back in order, up to the last token where no loss reads it."""
    length = batch.inputs.shape[1] - (subject.loss.name == "causal-lm")
    got, true = ({tuple(record[:length].tolist()) for record in records} for records in (found.records, batch.inputs))
    return found.ordered and got == true


@pytest.mark.parametrize(
    ("model", "rank", "b_std", "records", "length"),
    [
        # B = 0: fewer inputs than one rank.
        ("llama", 16, 0.0, 1, 8),
        ("llama", 32, 0.0, 4, 7),
        ("gpt2", 32, 0.0, 4, 7),
        ("bert", 16, 0.0, 1, 8),
        ("bert", 32, 0.0, 3, 8),
        # B has moved: up to three ranks, or one where queries, keys and values are one map.
        ("llama", 16, 0.02, 4, 12),
        ("gpt2", 32, 0.02, 4, 8),
        ("bert", 16, 0.02, 5, 8),
    ],
)
def test_records_come_back_in_order(model: str, rank: int, b_std: float, records: int, length: int) -> None:
    subject = adapted(model, rank, b_std)
    batch = batch_of(subject, records, length)
    found = attack(subject, batch, gradients(subject, batch))
    assert exact(found, subject, batch)


@pytest.mark.parametrize(
    ("model", "b_std", "records", "why"), [("llama", 0.0, 3, "adapter_bag"), ("bert", 0.02, 7, "adapter_bag")]
)
def test_more_inputs_than_the_ranks_hold_are_never_guessed(model: str, b_std: float, records: int, why: str) -> None:
    subject = adapted(model, 16, b_std)
    batch = batch_of(subject, records, 8)
    found = attack(subject, batch, gradients(subject, batch))
    assert found.status in (Status.NOT_APPLICABLE, Status.NOTHING_FOUND) and not found.records and why in found.message


@pytest.mark.parametrize(("b_std", "records"), [(0.0, 1), (0.02, 4)])
def test_local_steps_tell_as_much_as_a_gradient(b_std: float, records: int) -> None:
    """From B = 0 the movement of A is of second order and drowns in the weights' own rounding: sketches decide."""
    subject, training = adapted("bert", 16, b_std), LocalTraining(steps=4, lr=0.5, share="delta")
    batch = batch_of(subject, records, 8)
    update = ClientTrainer(subject=subject, training=training).update(batch, derive(1))
    assert exact(attack(subject, batch, update, training), subject, batch)


def test_the_certificate_proves_a_batch_from_adapters_alone() -> None:
    subject, training = adapted("bert", 16, 0.02), LocalTraining()
    batch = batch_of(subject, 4, 8)
    update = ClientTrainer(subject=subject, training=training).update(batch, derive(1))
    found = attack(subject, batch, update, training)
    assert found.status is Status.EXACT and set(update) <= {
        p for p, _ in subject.module.named_parameters() if "lora" in p
    }
