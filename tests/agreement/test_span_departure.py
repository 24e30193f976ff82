"""The client's layers read other inputs than the probe computes, in a short number format or under dropout: the distance that is
predicted is what members show, and records are read through it.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from gradleak.attacks.span import Span
from gradleak.core.attack import Reconstruction
from gradleak.core.batch import IGNORED, Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.span.reading.evidence import AttackInput
from gradleak.span.reading.observed_layer import first_layer

SIZES = {"hidden_size": 160, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 500}
LENGTHS = (8, 5, 6)
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def subjects_of(kind: str, seed: int, dtype: torch.dtype, loss: str = "classification") -> tuple[Subject, Subject]:
    """A model in a short format, and the same weights in float32."""
    whole = load_subject(f"random:{kind}", loss=loss, settings=SIZES, seed=seed)
    half = replace(whole, module=copy.deepcopy(whole.module).to(dtype))
    return half, replace(whole, module=copy.deepcopy(half.module).float())


def batch_of(subject: Subject, seed: int) -> Batch:
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    ids = torch.randint(6, 500, mask.shape, generator=derive(seed, "batch")).masked_fill(~mask, 0)
    labels = (
        torch.arange(len(LENGTHS)) % 2 if subject.loss.name == "classification" else ids.masked_fill(~mask, IGNORED)
    )
    return Batch(inputs=ids, mask=mask, labels=labels)


def view_of(subject: Subject, batch: Batch, trainer: ClientTrainer | None = None) -> Knowledge:
    facts = {"subject": subject, "batch_size": batch.size, "seq_len": batch.inputs.shape[1]}
    return Knowledge(facts=facts if trainer is None else {**facts, "trainer": trainer})


def attack(update: Update, knowledge: Knowledge, seed: int) -> Reconstruction:
    return Span()(Observation(update=update, knowledge=knowledge), rng=derive(seed, "attack"))


def as_set(records: tuple[torch.Tensor, ...]) -> set[tuple[int, ...]]:
    return {tuple(record.tolist()) for record in records}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_a_model_in_a_short_format_is_read(kind: str, dtype: str, seed: int) -> None:
    half, whole = subjects_of(kind, seed, HALF[dtype])
    batch = batch_of(half, seed)
    trainer = ClientTrainer(subject=half, training=LocalTraining())
    update = trainer.update(batch, derive(seed, "client"))
    told = attack(update, view_of(half, batch, trainer), seed)
    # With the weights in float32 and nothing said of the client, the format shows in the update alone.
    guessed = attack(update, view_of(whole, batch), seed)
    assert as_set(told.records) == as_set(guessed.records) == as_set(batch.records())
    assert next(half.module.parameters()).dtype is HALF[dtype]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_members_show_the_distance_that_is_predicted(kind: str, seed: int) -> None:
    half, whole = subjects_of(kind, seed, torch.bfloat16)
    batch = batch_of(half, seed)
    update = ClientTrainer(subject=half, training=LocalTraining()).update(batch, derive(seed, "client"))
    case = AttackInput.of(update, view_of(whole, batch).view(Span.needs | Span.uses))
    reader = first_layer(
        case.readable,
        case.model,
        noise_std=case.noise_std,
        summands=case.summands,
        mismatch=case.mismatch,
    )
    (z,) = case.model.inputs((reader,), batch.inputs, batch.mask)
    ratio = reader.space.residual(z[batch.mask]) / reader.space.expected(z[batch.mask])
    assert 0.5 < float(ratio.median()) < 1.5


def test_a_float32_client_is_where_the_probe_is() -> None:
    _, whole = subjects_of("gpt2", 0, torch.bfloat16)
    batch = batch_of(whole, 0)
    trainer = ClientTrainer(subject=whole, training=LocalTraining(dtype="bf16"))
    update = trainer.update(batch, derive(0))
    path = whole.anatomy.blocks[0].attention_output.module
    known, unknown = (
        AttackInput.of(update, view_of(whole, batch, each).view(Span.needs | Span.uses)) for each in (trainer, None)
    )
    assert known.mismatch(path) == 0.0
    assert 2.0**-11 < unknown.mismatch(path) < 2.0**-6
