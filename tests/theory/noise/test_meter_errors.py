"""What the meter cannot read is refused or read as far as it goes."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.errors import DataError, NotApplicableError, UsageError
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.theory.noise.meter import Verdict, measure_noise

pytestmark = pytest.mark.oracle

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 300}
PIXELS = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "image_size": 32, "patch_size": 16}


@cache
def subject_of(model_type: str) -> Subject:
    vision = model_type in {"vit", "deit"}
    extra = {"embedding_size": 32} if model_type == "electra" else {}
    if model_type == "olmo2":
        extra = {"pad_token_id": None}
    encoder = model_type in {"bert", "roberta", "electra", "distilbert", "modernbert"}
    loss = "classification" if vision else "masked-lm" if encoder else "causal-lm"
    return load_subject(f"random:{model_type}", loss=loss, settings=PIXELS if vision else SMALL | extra)


def update_of(subject: Subject, seed: int = 5, **training: object) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    if subject.modality == "image":
        inputs, mask = torch.rand(2, *subject.pixel_shape, generator=rng), torch.ones(2, dtype=torch.bool)
    else:
        inputs = torch.randint(1, 250, (2, 9), generator=rng)
        mask = torch.ones(2, 9, dtype=torch.bool)
        mask[1, 6:] = False
    labels = torch.tensor([0, 1]) if subject.loss.name == "classification" else inputs.masked_fill(~mask, -100)
    trainer = ClientTrainer(subject=subject, training=LocalTraining(**training))  # type: ignore[arg-type]
    return dict(trainer.update(Batch(inputs=inputs, mask=mask, labels=labels), rng))


def test_one_sgd_step_and_dropout_keep_the_identities_and_more_steps_are_refused() -> None:
    subject = subject_of("gpt2")
    step = {"share": "delta", "steps": 1, "lr": 0.1}
    assert measure_noise(update_of(subject, **step), subject).verdict is Verdict.CLEAN
    assert measure_noise(update_of(subject, dropout=True), subject).verdict is Verdict.CLEAN
    for training in (LocalTraining(share="delta", steps=2), LocalTraining(share="delta", optimizer="adamw")):
        with pytest.raises(NotApplicableError, match="breaks the identities"):
            measure_noise(update_of(subject), subject, training=training)
    adamw = update_of(subject, share="delta", steps=1, lr=0.1, optimizer="adamw")
    assert measure_noise(adamw, subject).verdict is not Verdict.CLEAN


def test_short_updates_are_read_as_far_as_they_go() -> None:
    subject = subject_of("llama")
    whole = update_of(subject)
    values = {name: t for name, t in whole.items() if "v_proj" in name or "o_proj" in name}
    reading = measure_noise(values, subject)
    assert {part.kind for part in reading.parts} == {"value-output"}
    with pytest.raises(NotApplicableError, match="no complete pair"):
        measure_noise({name: t for name, t in whole.items() if "v_proj" in name}, subject)
    with pytest.raises(NotApplicableError, match="zero"):
        measure_noise({name: torch.zeros_like(t) for name, t in whole.items()}, subject)


def test_wrong_input_is_refused() -> None:
    subject = subject_of("gpt2")
    update = update_of(subject)
    name = next(iter(update))
    with pytest.raises(DataError, match="shape"):
        measure_noise({name: update[name][:1]}, subject)
    with pytest.raises(DataError, match="no parameter"):
        measure_noise({"nothing": update[name]}, subject)
    with pytest.raises(UsageError, match="confidence"):
        measure_noise(update, subject, confidence=1.0)
    with pytest.raises(UsageError, match="claim"):
        measure_noise(update, subject).p_value(0.0)
