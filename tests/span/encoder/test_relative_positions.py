"""The search around tokens against the truth: models that turn queries and keys, or that read no positions at all."""

from __future__ import annotations

import pytest
import torch

from gradleak.attacks.span import Span
from gradleak.core.attack import Clock, Reconstruction, Status
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject
from gradleak.span.encoder.attention_equations import AttentionEquations, Pairs
from gradleak.span.encoder.relative_positions import RelativeSearch, _assigned, _neighbors, _renamed
from gradleak.span.encoder.subset_selection import Layout

pytestmark = pytest.mark.oracle

TOKENS, LONGEST, HEADS, WIDTH = 10, 7, 3, 8


def synthetic(sentence: torch.Tensor, seed: int) -> RelativeSearch:
    """Rotated queries and keys of ten tokens; only tokens of the sentence have a target, their own attended vector."""
    rng = torch.Generator().manual_seed(seed)
    window = 2 * LONGEST - 1
    query, key, value = (torch.randn(TOKENS, HEADS, WIDTH, generator=rng, dtype=torch.float64) for _ in range(3))
    query = 0.2 * query
    speed = 0.9 ** torch.arange(0, WIDTH // 2, dtype=torch.float64)
    angle = torch.arange(window)[:, None, None, None] * speed
    turn = torch.polar(torch.ones_like(angle), angle)
    turned = [torch.view_as_real(torch.view_as_complex(x.unflatten(2, (-1, 2))) * turn) for x in (query, key)]
    matrix = torch.randn(HEADS, WIDTH, 40, generator=rng, dtype=torch.float64)
    pairs = Pairs(
        tokens=torch.arange(TOKENS).repeat(window),
        places=torch.arange(window).repeat_interleave(TOKENS),
        at=tuple(torch.arange(TOKENS * window).split(TOKENS)),
    )
    empty = torch.zeros(pairs.count, 40, dtype=torch.float64)
    equations = AttentionEquations(
        pairs=pairs,
        queries=turned[0].flatten(0, 1).flatten(2),
        keys=turned[1].flatten(0, 1).flatten(2),
        values=torch.einsum("thd,hdm->thm", value, matrix).repeat(window, 1, 1),
        target=empty,
        null=1.0,
    )
    rows = torch.arange(len(sentence)) * TOKENS + sentence
    scores = torch.einsum("ahd,jhd->ajh", equations.queries[rows], equations.keys[rows])
    attended = torch.einsum("ajh,jhm->am", scores.softmax(1), equations.values[rows])
    for token, target in zip(sentence.tolist(), attended, strict=True):
        equations.target[pairs.tokens == token] = target
    return RelativeSearch(
        equations=equations, layout=Layout.around(pairs, LONGEST), tokens=torch.arange(TOKENS), longest=LONGEST
    )


@pytest.mark.parametrize("seed", range(3))
def test_through_some_token_the_sentence_comes_back(seed: int) -> None:
    """Not through every one: the content around a token is rounded, and what is proposed is tested as a sentence later."""
    rng = torch.Generator().manual_seed(100 + seed)
    sentence = torch.randperm(TOKENS, generator=rng)[: 5 + seed % 3]
    search = synthetic(sentence, seed)
    found = [search.through(token) for token in sentence.tolist()]
    assert any(each is not None and each.tolist() == sentence.tolist() for each in found)


def test_neighbors_are_every_exchange_and_every_move_once() -> None:
    orders = {tuple(order) for order in _neighbors(4).tolist()}
    assert len(orders) == len(_neighbors(4)) == 1 + 6 + 6  # itself, exchanges, moves that are no exchange
    assert {(1, 2, 0, 3), (3, 1, 2, 0), (1, 2, 3, 0)} <= orders


def test_words_that_occur_equally_often_change_places_with_all_their_copies() -> None:
    assert _renamed(torch.tensor([4, 5, 4, 5, 6, 7])).tolist() == [[5, 4, 5, 4, 6, 7]]
    assert not len(_renamed(torch.tensor([4, 5, 4, 6])))


@pytest.mark.parametrize("seed", range(5))
def test_copies_of_a_word_share_its_attention_out_among_them(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    word = torch.tensor([0, 1, 1, 2, 3, 3, 3, 4])
    bias = torch.randn(5, 24, generator=rng, dtype=torch.float64)
    seen = bias[word].unsqueeze(1) + torch.randn(8, 24, generator=rng, dtype=torch.float64).mul(0.3)
    place = torch.randperm(8, generator=rng)
    held = torch.zeros(5, 24, dtype=torch.float64).index_add(0, word, seen[torch.arange(8), place].exp())
    value, order = _assigned(seen, held.log()[word], word, own=0, place=int(place[0]))
    assert torch.equal(word[order], word[place.argsort()])
    assert value < 1e-20


def test_a_window_holds_sentences_around_its_middle_without_gaps() -> None:
    layout = synthetic(torch.arange(5), 0).layout
    constraints, window = layout.matrix[:, : len(layout.places)], 2 * LONGEST - 1

    def slack(occupied: list[int]) -> torch.Tensor:
        held = torch.isin(layout.places, torch.tensor(occupied)) & (torch.arange(len(layout.places)) % TOKENS == 0)
        rest = layout.wanted - constraints @ held.double()
        return rest / layout.matrix[:, len(layout.places) :].diagonal()

    assert len(layout.matrix) == window
    assert bool((slack([5, 6, 7, 8]) >= 0).all())
    assert bool((slack([5, 6, 8]) < 0).any())  # a gap
    assert bool((slack(list(range(2, 10))) < 0).any())  # too long


def attacked(kind: str, seed: int, highest: int, rows: tuple[int, ...]) -> tuple[Reconstruction, Batch]:
    settings = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 500}
    subject = load_subject(f"random:{kind}", loss="classification", settings=settings)
    rng = derive(seed, kind)
    mask = torch.arange(max(rows)) < torch.tensor(rows).unsqueeze(1)
    ids = torch.randint(10, highest, mask.shape, generator=rng).masked_fill(~mask, 0)
    batch = Batch(inputs=ids, mask=mask, labels=torch.arange(len(rows)) % 2)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    update = trainer.update(batch, rng)
    facts = {"subject": subject, "batch_size": len(rows), "seq_len": max(rows), "trainer": trainer}
    return Span()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=rng, clock=Clock(60.0)), batch


def told(records: tuple[torch.Tensor, ...] | list[torch.Tensor]) -> set[tuple[int, ...]]:
    return {tuple(record.tolist()) for record in records}


@pytest.mark.parametrize(
    "kind", ["modernbert", "eurobert", "gte", "ultrabert", "jina_embeddings_v3", "nomic_bert", "roformer"]
)
def test_rotary_encoders_give_their_sentences_back(kind: str) -> None:
    found, batch = attacked(kind, 11, 500, (10, 8))
    assert found.ordered and told(found.records) == told(batch.records())
    assert found.status is Status.EXACT


@pytest.mark.parametrize("kind", ["modernbert", "nomic_bert"])
def test_where_most_tokens_occur_in_several_places_most_sentences_come_back_and_nothing_wrong(kind: str) -> None:
    right = 0
    for seed in (12, 13, 14):
        found, batch = attacked(kind, seed, 22, (10, 8))
        assert all(len(record.unique()) < len(record) for record in batch.records())
        assert found.records and (not found.ordered or told(found.records) <= told(batch.records()))
        right += len(told(found.records) & told(batch.records()))
    assert right >= 3


def test_a_model_without_positions_gives_the_tokens_of_each_record_and_claims_no_order() -> None:
    found, batch = attacked("esm", 13, 500, (10, 8))
    assert not found.ordered and "reads no positions" in found.message
    assert told([r.sort().values for r in found.records]) == told([r.sort().values for r in batch.records()])
