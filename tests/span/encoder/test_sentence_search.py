"""Every sentence is found among all words, without lengths and batch size."""

from __future__ import annotations

import math

import pytest
import torch
import transformers

from gradleak.core.attack import Clock
from gradleak.core.batch import Batch
from gradleak.core.loss import CLASSIFICATION
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing.model import Model
from gradleak.models import Subject, read_anatomy
from gradleak.span.candidates.types import Candidates
from gradleak.span.encoder.attention_equations import Pairs
from gradleak.span.encoder.sentence_search import SentenceResult, SentenceSearch
from gradleak.span.reading.observed_layer import ObservedLayer, context_layers, first_layer

pytestmark = pytest.mark.oracle

VOCAB, LENGTHS = 300, (9, 7, 9)
EXACT = {"noise_std": lambda _: 0.0, "summands": sum(LENGTHS)}


def subject_of(kind: str, seed: int) -> Subject:
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    module = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    anatomy = read_anatomy(module)
    with torch.no_grad():
        for block in anatomy.blocks:  # Attention of a trained model is far from uniform.
            for linear in block.attention_inputs[:2]:
                module.get_parameter(linear.weight).mul_(6.0)
    return Subject(name=kind, module=module, anatomy=anatomy, tokenizer=None, loss=CLASSIFICATION, classes=2)


def case(kind: str, seed: int) -> tuple[Subject, Batch, ObservedLayer, tuple[ObservedLayer, ...], Candidates]:
    """Every token of the batch is a candidate at every position: the first test tells words, not places."""
    subject, rng = subject_of(kind, seed), derive(seed, kind)
    ids = torch.randint(3, VOCAB, (len(LENGTHS), max(LENGTHS)), generator=rng)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)
    batch = Batch(inputs=ids.masked_fill(~mask, 0), mask=mask, labels=torch.tensor([0, 1, 1]))
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, rng)
    words = ids[mask].unique()
    candidates = Candidates(
        tokens=(words,) * max(LENGTHS),
        residuals=(torch.zeros(len(words)),) * max(LENGTHS),
        nearest=words[: max(LENGTHS)],
        null_cut=0.1,
        positional=True,
    )
    readers = context_layers(update, Model(subject=subject), **EXACT)
    return subject, batch, first_layer(update, Model(subject=subject), **EXACT), readers, candidates


def assembled(kind: str, seed: int) -> tuple[SentenceResult, Batch]:
    subject, batch, first, readers, candidates = case(kind, seed)
    search = SentenceSearch(
        candidates=candidates,
        first=first,
        readers=readers,
        model=Model(subject=subject),
        block=subject.anatomy.blocks[0],
        batch_size=None,
        lengths=tuple(range(3, max(LENGTHS) + 1)),
    )
    return search.run(rng=derive(seed), clock=Clock()), batch


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_finds_every_sentence_among_all_words_without_lengths_and_batch_size(kind: str, seed: int) -> None:
    found, batch = assembled(kind, seed)
    assert {tuple(ids.tolist()) for ids in found.sentences} == {tuple(ids.tolist()) for ids in batch.records()}
    assert found.complete
    assert all(float(each.min()) > 0.999 for each in found.confidence)
    # The polynomial bound of docs/span.md: one pass tries each pair as an anchor twice at most, 11 steps each. Every
    # sentence one by one would be as many tests as there are choices of a candidate per position.
    pairs = Pairs.of(case(kind, seed)[4])
    assert 0 < found.steps <= 2 * 11 * pairs.count
    assert math.prod(at.numel() for at in pairs.at) > 1000 * found.steps * pairs.count
