"""The encoder search against independent derivations: the model's own forward pass, autograd, and known sentences."""

from __future__ import annotations

import math

import pytest
import torch
import transformers

from gradleak.core.attack import Clock
from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing.model import Model
from gradleak.models import Subject, read_anatomy
from gradleak.span.candidates.types import Candidates
from gradleak.span.encoder.attention_equations import AttentionEquations, Pairs, attention_equations
from gradleak.span.encoder.sentence_search import Assembled, Assembly
from gradleak.span.encoder.subset_selection import Layout, _Interior
from gradleak.span.reading.readers import Reader, context_readers, first_reader

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
    return Subject(name=kind, module=module, anatomy=anatomy, tokenizer=None, loss="classification", classes=2)


def case(kind: str, seed: int) -> tuple[Subject, Batch, Reader, tuple[Reader, ...], Candidates]:
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
    readers = context_readers(update, Model(subject=subject), **EXACT)
    return subject, batch, first_reader(update, Model(subject=subject), **EXACT), readers, candidates


def equations_of(kind: str, seed: int) -> tuple[AttentionEquations, Batch]:
    subject, batch, first, readers, candidates = case(kind, seed)
    made = attention_equations(
        Model(subject=subject),
        Pairs.of(candidates),
        subject.anatomy.blocks[0],
        first,
        readers,
        columns=64,
        rng=derive(seed),
    )
    assert made is not None
    return made, batch


def numbers(pairs: Pairs, ids: torch.Tensor) -> torch.Tensor:
    return torch.stack(
        [at[(pairs.tokens[at] == token).nonzero()[0, 0]] for at, token in zip(pairs.at, ids, strict=False)]
    )


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_the_update_satisfies_its_equations_at_the_truth_and_nowhere_near(kind: str) -> None:
    equations, batch = equations_of(kind, 0)
    for record in batch.records():
        row = numbers(equations.pairs, record)
        assert float(equations.residuals(row.unsqueeze(0)).max()) < 1e-4 * equations.null
        row[2] = equations.pairs.at[2][(equations.pairs.at[2] != row[2]).nonzero()[0, 0]]
        assert float(equations.residuals(row.unsqueeze(0)).max()) > 1e-2 * equations.null


def test_the_cost_of_an_exchange_is_that_of_the_exchanged_sentence() -> None:
    equations, batch = equations_of("bert", 0)
    row = numbers(equations.pairs, batch.records()[0])
    options = equations.pairs.at[3][:5]
    for option, cost in zip(options, equations.exchanged(row, 3, options), strict=True):
        changed = row.clone()
        changed[3] = option
        whole = equations.residuals(changed.unsqueeze(0))[0].square()
        assert float(cost) == pytest.approx(float(whole.sum() - whole[3]), rel=1e-6, abs=1e-10)


def test_the_step_uses_the_derivative_of_the_residual() -> None:
    equations, batch = equations_of("bert", 0)
    layout = Layout.of(equations.pairs, [7, 9], None)
    anchors = numbers(equations.pairs, batch.records()[0])[3].reshape(1, 1)
    interior = _Interior.start(equations, layout, anchors, torch.zeros(equations.pairs.count))
    slope, value = interior._linearized(equations.weights(anchors))
    change = torch.where(interior.free, torch.randn(interior.x.shape, generator=derive(1), dtype=torch.float64), 0.0)
    step = 1e-6
    interior.x = interior.x + step * change
    moved = interior._linearized(equations.weights(anchors))[1]
    wanted = (slope @ change.unsqueeze(2)).squeeze(2)
    assert float(((moved - value) / step - wanted).norm()) < 1e-3 * float(wanted.norm())


@pytest.mark.parametrize("closing", [None, 5])
def test_a_sentence_of_any_allowed_length_satisfies_the_layout(closing: int | None) -> None:
    words = torch.tensor([3, 4, 5])
    candidates = Candidates(
        tokens=(words,) * 4, residuals=(torch.zeros(3),) * 4, nearest=words[[0, 0, 0, 0]], null_cut=0.1, positional=True
    )
    pairs = Pairs.of(candidates)
    layout = Layout.of(pairs, [2, 4], closing)
    for ids, end in (([3, 5], 0), ([3, 4, 4, 5], 1), ([3, 5, 4, 5], 1)):
        x = torch.zeros(layout.matrix.shape[1], dtype=torch.float64)
        x[numbers(pairs, torch.tensor(ids))] = 1.0
        x[pairs.count + end] = 1.0
        if closing is not None and len(ids) == 4 and ids[1] == closing:
            x[pairs.count + 2] = 1.0  # A closing token that does not close.
        assert torch.equal(layout.matrix @ x, layout.wanted)


def assembled(kind: str, seed: int) -> tuple[Assembled, Batch]:
    subject, batch, first, readers, candidates = case(kind, seed)
    search = Assembly(
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
