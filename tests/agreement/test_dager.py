"""Two derivations of one attack: where the plain algorithm applies, the span engine must find the same sequences."""

from __future__ import annotations

import pytest
import torch
import transformers

from gradleak.attacks.dager import DAGER
from gradleak.attacks.span import Span
from gradleak.core.attack import Reconstruction, Status
from gradleak.core.batch import Batch
from gradleak.core.errors import SpecError
from gradleak.core.knowledge import Knowledge
from gradleak.core.observation import Observation
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.mechanics.training import ClientTrainer, LocalTraining
from gradleak.models import Subject, read_anatomy


def subject_of(kind: str) -> Subject:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=300, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, pad_token_id=0
    )
    module = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    return Subject(
        name=kind, module=module, anatomy=read_anatomy(module), tokenizer=None, loss="classification", classes=2
    )


def observe(subject: Subject, lengths: list[int], seed: int) -> tuple[Batch, Observation]:
    rng = derive(seed, "batch")
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    ids = torch.randint(3, 300, mask.shape, generator=rng).masked_fill(~mask, 0)
    batch = Batch(inputs=ids, mask=mask, labels=torch.randint(0, 2, (len(lengths),), generator=rng))
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    facts = {
        "subject": subject,
        "trainer": trainer,
        "stages": (),
        "batch_size": batch.size,
        "seq_len": batch.inputs.shape[1],
    }
    return batch, Observation(update=trainer.update(batch, rng), knowledge=Knowledge(facts=facts))


def found_by(attack: DAGER | Span, observation: Observation, seed: int) -> tuple[Reconstruction, set[tuple[int, ...]]]:
    made = attack(observation, rng=derive(seed, "attack"))
    return made, {tuple(record.tolist()) for record in made.records}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "lengths"), [("gpt2", [9, 6, 7]), ("gpt2", [8]), ("bert", [7]), ("bert", [5, 5])])
def test_both_find_the_batch(kind: str, lengths: list[int], seed: int) -> None:
    subject = subject_of(kind)
    batch, observation = observe(subject, lengths, seed)
    truth = {tuple(record.tolist()) for record in batch.records()}
    # Float32 gradients of a three-block model: the published tau1 of 1e-5 holds for the first layer.
    _, plain = found_by(DAGER(), observation, seed)
    _, ours = found_by(Span(), observation, seed)
    assert plain >= truth
    assert ours == truth


def test_fixed_thresholds_fail_under_the_noise_that_span_reads_through() -> None:
    subject = subject_of("gpt2")
    batch, observation = observe(subject, [9, 6], 0)
    rng = derive(0, "noise")
    noisy = {
        name: tensor + 1e-3 * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=rng)
        for name, tensor in observation.update.items()
    }
    noisy_observation = Observation(update=Update(noisy), knowledge=observation.knowledge)
    truth = {tuple(record.tolist()) for record in batch.records()}
    assert not found_by(DAGER(), noisy_observation, 0)[1] & truth
    assert found_by(Span(), noisy_observation, 0)[1] == truth


def test_says_what_it_needs() -> None:
    subject = subject_of("gpt2")
    _, observation = observe(subject, [6], 0)
    without = Update({name: t for name, t in observation.update.items() if "c_attn" not in name})
    made, _ = found_by(DAGER(), Observation(update=without, knowledge=observation.knowledge), 0)
    assert made.status is Status.NOT_APPLICABLE
    assert "c_attn" in made.message


@pytest.mark.parametrize("argument", ["tau1", "tau2", "rank_tolerance", "combinations"])
def test_refuses_a_threshold_that_is_not_positive(argument: str) -> None:
    with pytest.raises(SpecError, match=argument):
        DAGER(**{argument: 0})
