"""The ghost Gram matrix against whole gradients: every family, every loss, padding, tied heads, tables, little memory."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.batch import IGNORED, Batch
from gradleak.core.errors import ModelError
from gradleak.mechanics.client import gram
from gradleak.mechanics.client.gram import CandidateGradients, gram_matrix
from gradleak.mechanics.client.outer_products import FactoredMatrix, RowSum
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.oracle

DECODERS = ("gpt2", "llama", "gemma", "opt", "gpt_neox")
ENCODERS = ("bert", "roberta", "distilbert")
CASES = (
    [(name, "classification") for name in (*DECODERS, *ENCODERS, "vit")]
    + [(name, "causal-lm") for name in DECODERS]
    + [(name, "masked-lm") for name in ENCODERS]
)
TOKENS = 6


def tiny(name: str, loss: str) -> Subject:
    settings: dict[str, object] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings |= {"image_size": 16, "patch_size": 8} if name == "vit" else {"vocab_size": 300}
    subject = load_subject(f"random:{name}", loss=loss, settings=settings, seed=0)
    subject.module.double()
    return subject


def candidates_of(subject: Subject, count: int = 5) -> Batch:
    """Records of unequal length with repeated tokens, so that rows of tables are shared within and between them."""
    rng = torch.Generator().manual_seed(1)
    if subject.modality == "image":
        pixels = torch.rand(count, 3, 16, 16, generator=rng, dtype=torch.float64)
        return Batch(inputs=pixels, mask=torch.ones(count, dtype=torch.bool), labels=torch.arange(count) % 2)
    ids = torch.randint(10, 20, (count, TOKENS), generator=rng)
    mask = torch.ones(count, TOKENS, dtype=torch.bool)
    mask[1, 4:] = False
    labels = torch.arange(count) % 2
    if subject.loss.name == "causal-lm":
        labels = torch.where(mask, ids, IGNORED)
    elif subject.loss.name == "masked-lm":
        labels = torch.where((torch.arange(TOKENS) % 3 == 1) & mask, ids, IGNORED)
    return Batch(inputs=ids, mask=mask, labels=labels)


def whole_gradients(subject: Subject, candidates: Batch) -> torch.Tensor:
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    rows = []
    for k in range(candidates.size):
        one = slice(k, k + 1)
        batch = Batch(inputs=candidates.inputs[one], mask=candidates.mask[one], labels=candidates.labels[one])
        weights = {name: subject.parameters()[name].detach().requires_grad_() for name in trainer.names()}
        loss = trainer.loss(trainer.prepare(batch), weights)
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in found]))
    return torch.stack(rows)


@pytest.fixture(autouse=True)
def _double() -> object:
    """Labels become probabilities in the default format."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_gram_equals_that_of_whole_gradients(name: str, loss: str) -> None:
    subject = tiny(name, loss)
    candidates = candidates_of(subject)
    names = ClientTrainer(subject=subject, training=LocalTraining()).names()
    whole = whole_gradients(subject, candidates)
    expected = whole @ whole.T
    found = gram_matrix(subject, candidates, names, chunk=2)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "loss"), [("gpt2", "causal-lm"), ("bert", "classification"), ("opt", "causal-lm")])
def test_inner_products_with_one_update(name: str, loss: str) -> None:
    subject = tiny(name, loss)
    candidates = candidates_of(subject)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    whole = whole_gradients(subject, candidates)
    rng = torch.Generator().manual_seed(2)
    update = {n: torch.randn(subject.parameters()[n].shape, generator=rng) for n in trainer.names()}
    flat = torch.cat([update[n].flatten() for n in trainer.names()])
    found = CandidateGradients.of(subject, candidates, trainer.names(), chunk=3).inner(update)
    assert torch.allclose(found, whole @ flat, rtol=1e-9, atol=1e-9 * float((whole @ flat).abs().max()))


def test_rounds_of_little_memory_give_the_same_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = tiny("gpt2", "causal-lm")
    candidates = candidates_of(subject)
    names = ClientTrainer(subject=subject, training=LocalTraining()).names()
    whole = gram_matrix(subject, candidates, names)
    seen: list[float] = []
    monkeypatch.setattr(gram, "_CELLS", 400)
    little = gram_matrix(subject, candidates, names, chunk=1, memory_bytes=4000, progress=lambda f, _: seen.append(f))
    assert torch.allclose(whole, little, rtol=1e-12, atol=1e-12 * float(whole.abs().max()))
    assert seen == sorted(seen) and seen[-1] == 1.0


@pytest.mark.parametrize("tokens", [2, 9])
def test_both_ways_to_multiply_outer_sums_agree(tokens: int) -> None:
    rng = torch.Generator().manual_seed(3)
    part = FactoredMatrix(
        left=torch.randn(4, tokens, 17, generator=rng), right=torch.randn(4, tokens, 15, generator=rng)
    )
    dense = part.dense().flatten(1)
    assert torch.allclose(gram._sliced(part), dense @ dense.T)
    assert torch.allclose(gram._by_tokens(part, part), dense @ dense.T)
    assert gram._slices_are_cheaper(part) == (tokens == 9)


def test_a_table_meets_a_tied_head() -> None:
    rng = torch.Generator().manual_seed(4)
    head = FactoredMatrix(left=torch.randn(4, 3, 11, generator=rng), right=torch.randn(4, 3, 5, generator=rng))
    table = RowSum(index=torch.randint(11, (4, 3), generator=rng), rows=torch.randn(4, 3, 5, generator=rng), height=11)
    dense = (head.dense() + table.dense()).flatten(1)
    assert torch.allclose(gram._self_products((head, table), 4), dense @ dense.T)


def test_a_module_without_a_rule_is_named() -> None:
    subject = load_subject(
        "random:bert", settings={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    )
    subject.module.register_module("loose", Loose())
    with pytest.raises(ModelError, match="cannot factor"):
        gram_matrix(subject, candidates_of(subject), ("loose.matrix",))


class Loose(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.ones(2, 2))
