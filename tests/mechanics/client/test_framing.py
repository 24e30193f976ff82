"""What a tokenizer puts around a text is known to who knows the tokenizer, and only where it is true."""

from __future__ import annotations

import pytest
import torch

from gradleak.attacks.tag import TAG
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.mechanics.client.framing import UNKNOWN, Framing
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.models.tokenizer import ByteTokenizer

pytestmark = pytest.mark.contract

BEGIN, END, PAD = 257, 258, 256
FRAMING = Framing(before=(BEGIN,), after=(END,))


@pytest.fixture(scope="module")
def subject() -> Subject:
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 260}
    return load_subject("random:bert", loss="classification", settings=settings, tokenizer=ByteTokenizer(), seed=0)


def test_is_read_from_the_tokenizer() -> None:
    assert Framing.of(ByteTokenizer()) == FRAMING
    assert Framing.of(None) is None


def test_tells_the_places_that_the_lengths_allow() -> None:
    known = FRAMING.known(torch.tensor([4, 3, 0]), 4)
    assert known.tolist() == [
        [BEGIN, UNKNOWN, UNKNOWN, END],
        [BEGIN, UNKNOWN, END, UNKNOWN],
        [BEGIN, UNKNOWN, UNKNOWN, UNKNOWN],
    ]


@pytest.mark.parametrize(
    ("ids", "mask", "holds"),
    [
        ([[BEGIN, 1, 2, END], [BEGIN, 3, END, PAD]], [[1, 1, 1, 1], [1, 1, 1, 0]], True),
        ([[BEGIN, 1, 2, 3], [BEGIN, 3, END, PAD]], [[1, 1, 1, 1], [1, 1, 1, 0]], False),
        ([[BEGIN, 1, END, PAD]], [[1, 1, 1, 0]], False),
        ([[PAD, BEGIN, 1, END], [BEGIN, 1, 2, END]], [[0, 1, 1, 1], [1, 1, 1, 1]], False),
        ([[END]], [[1]], False),
    ],
    ids=["framed", "own ids", "padded beyond the longest", "padded on the left", "too short"],
)
def test_own_ids_are_not_taken_for_framed_texts(ids: list[list[int]], mask: list[list[int]], holds: bool) -> None:
    assert FRAMING.holds_in(torch.tensor(ids), torch.tensor(mask).bool()) is holds


def test_matching_keeps_the_known_tokens_and_searches_the_rest(subject: Subject) -> None:
    assert subject.tokenizer is not None
    ids, mask = subject.tokenizer.encode(["pay"], 8)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    update = trainer.update(Batch(inputs=ids, mask=mask, labels=torch.tensor([1])), derive(0, "training"))
    facts = {"subject": subject, "trainer": trainer, "batch_size": 1, "seq_len": ids.shape[1], "framing": FRAMING}
    found = TAG(iterations=2, screened=1)(
        Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(0, "attack")
    )
    first, *inner, last = found.records[0].tolist()
    assert (first, last) == (BEGIN, END)
    unframed = {name: fact for name, fact in facts.items() if name != "framing"}
    blind = TAG(iterations=2, screened=1)(
        Observation(update=update, knowledge=Knowledge(facts=unframed)), rng=derive(0, "attack")
    )
    assert blind.records[0].tolist() != [BEGIN, *inner, END]
