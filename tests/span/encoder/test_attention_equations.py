"""The encoder search against independent derivations: the model's own forward pass, autograd, and known sentences."""

from __future__ import annotations

import pytest
import torch
import transformers

from gradleak.core.batch import Batch
from gradleak.core.loss import CLASSIFICATION
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing.model import Model
from gradleak.models import Subject, read_anatomy
from gradleak.span.candidates.types import Candidates
from gradleak.span.encoder.attention_equations import AttentionEquations, Pairs, attention_equations
from gradleak.span.encoder.subset_selection import Layout, _Interior
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
