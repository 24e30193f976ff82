"""The rank condition is met exactly where the span attack recovers, on updates of real modules in float32; and where the
forecast says that noise has ended the test of tokens, the attack finds none.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from gradleak.attacks.span import Span
from gradleak.core.attack import Reconstruction, Status
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.loss import LOSSES
from gradleak.core.rng import derive
from gradleak.core.stage import Stage
from gradleak.core.update import Update
from gradleak.defenses.clip import Clip
from gradleak.defenses.gaussian import Gaussian
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, read_anatomy
from gradleak.theory.identifiability.counting import Uniqueness
from gradleak.theory.prediction.predict import predict
from gradleak.theory.prediction.stand_in import stand_in_batch
from gradleak.theory.prediction.types import Noise, Prediction

WIDTH, VOCAB = 48, 700


def subject_of(kind: str, *, loss: str = "classification", layers: int = 2, seed: int = 0) -> Subject:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 80,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if kind != "gpt2":
        sizes["intermediate_size"] = 2 * WIDTH
    auto = {
        "classification": transformers.AutoModelForSequenceClassification,
        "causal-lm": transformers.AutoModelForCausalLM,
    }[loss]
    config = transformers.AutoConfig.for_model(kind, **sizes)
    module = auto.from_config(config, attn_implementation="eager").eval()
    classes = 2 if loss == "classification" else VOCAB
    return Subject(
        name=kind,
        module=module,
        anatomy=read_anatomy(module),
        tokenizer=None,
        loss=LOSSES[loss],
        classes=classes,
    )


def foretell(subject: Subject, batch: Batch, noise: Noise | None = None) -> Prediction:
    return predict(subject, batch, training=LocalTraining(), noise=noise or Noise(), origin="test")


def attack(subject: Subject, batch: Batch, *stages: Stage) -> Reconstruction:
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    channel = Channel(trainer=trainer, stages=stages)
    facts = {
        "subject": subject,
        "trainer": trainer,
        "stages": channel.stages,
        "batch_size": batch.size,
        "seq_len": batch.inputs.shape[1],
    }
    released = channel.observe(batch, derive(0, "channel"))
    # The span alone is predicted here; the rows of the embedding's gradient would tell the tokens by themselves.
    update = Update({name: t for name, t in released.items() if name != subject.anatomy.token_embedding})
    return Span()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(0, "attack"))


def recovered(found: Reconstruction) -> set[int]:
    return {token for record in found.records for token in record.tolist()}


@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama"])
@pytest.mark.parametrize(("records", "length"), [(1, 8), (2, 10), (4, 9), (4, 12), (6, 10)])
def test_rank_condition_decides_recovery(kind: str, records: int, length: int) -> None:
    """Width 48: 8, 20 and 36 distinct tokens fit, 48 and 60 do not. Theory says so before, the attack after."""
    subject = subject_of(kind)
    batch = stand_in_batch(subject, batch_size=records, seq_len=length, seed=1)
    answers = {each.question: each.verdict.uniqueness for each in foretell(subject, batch).conclusions}
    first = answers["tokens, by the first attention"]
    fits = records * length < WIDTH
    assert (first is not Uniqueness.UNDERDETERMINED) is fits
    assert (answers["records, by the layer behind it"] is not Uniqueness.UNDERDETERMINED) is fits
    found = attack(subject, batch)
    truth = {tuple(row.tolist()) for row in batch.inputs}
    assert ({tuple(r.tolist()) for r in found.records} == truth) is fits
    assert (found.status is Status.EXACT) is fits


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_last_token_of_a_language_model_reaches_no_layer_and_is_read_from_the_heads_errors(kind: str) -> None:
    subject = subject_of(kind, loss="causal-lm")
    batch = stand_in_batch(subject, batch_size=2, seq_len=8, seed=2)
    prediction = foretell(subject, batch)
    together = prediction.table[-1]
    assert (together.held, together.places) == (14, "x1–x7")
    assert any("last token" in each for each in prediction.invisible)
    tokens = recovered(attack(subject, batch))
    # A tied head is the token table, which this attack is not given.
    shown = batch.inputs[:, :-1] if subject.anatomy.tied else batch.inputs
    assert tokens == set(shown.flatten().tolist())


def test_one_layer_and_a_pooled_token_hold_a_mixture_only() -> None:
    """Four heads and one row each: the values span four dimensions, and only the pooled token is there by itself."""
    subject = subject_of("bert", layers=1)
    batch = stand_in_batch(subject, batch_size=1, seq_len=12, seed=3)
    prediction = foretell(subject, batch)
    assert [(row.rank, row.held) for row in prediction.table] == [(1, 1), (4, 0), (4, 0), (9, 1)]
    assert [row.seen for row in prediction.table] == [1, 4, 4, 9]
    found = attack(subject, batch)
    assert found.status is not Status.EXACT
    assert len(recovered(found) & set(batch.inputs.flatten().tolist())) <= 1


def test_repeated_records_and_shared_prefixes_count_once_behind_the_attention() -> None:
    subject = subject_of("gpt2")
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 10], [5, 6, 7, 8]])
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=torch.tensor([0, 1, 0]))
    prediction = foretell(subject, batch)
    # 5, 56, 567, 5678, 569, 569-10.
    assert prediction.contexts == 6
    assert {tuple(r.tolist()) for r in attack(subject, batch).records} == {tuple(r.tolist()) for r in ids}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_noise_ends_the_attack_where_the_forecast_says(kind: str) -> None:
    """Well below the forecast's threshold everything is found, well above nothing: the forecast brackets the attack."""
    subject = subject_of(kind)
    batch = stand_in_batch(subject, batch_size=1, seq_len=8, seed=4)
    best = foretell(subject, batch).forecasts[-1]
    truth = set(batch.inputs.flatten().tolist())
    weak, strong = best.span_half / 30, 10 * max(best.token_few, best.span_all)
    for noise, share in ((weak, 1.0), (strong, 0.0)):
        stages = (Clip(max_norm=1e-3), Gaussian(noise_multiplier=noise))
        tokens = recovered(attack(subject, batch, *stages))
        assert len(tokens & truth) / len(truth) == pytest.approx(share, abs=0.13), noise


def test_the_forecast_is_in_the_units_of_clip_and_noise() -> None:
    """σ = z·C with an active clip is z times the norm of the update: the noise that the forecast speaks of."""
    subject = subject_of("llama")
    batch = stand_in_batch(subject, batch_size=1, seq_len=8, seed=5)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "x"))
    norm = sum(float(t.double().square().sum()) for t in update.values()) ** 0.5
    assert foretell(subject, batch).forecasts[0].unit == pytest.approx(norm, rel=1e-6)
    relative = foretell(subject, batch, Noise(unit="relative_std", value=0.1))
    name = relative.forecasts[0].name
    assert relative.forecasts[0].unit == pytest.approx(float(update[name].double().square().mean().sqrt()), rel=1e-6)
