"""The ways in which the span search saves work, each against the long way: few random sums of outputs, projections by law, a
screen of continuations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers

from gradleak.attacks.span import Span
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing import head_law as heads_law
from gradleak.mechanics.probing.heads import read_heads
from gradleak.mechanics.subspace.spectrum import from_gram, from_range, from_sums, room
from gradleak.models import Subject, load_subject
from gradleak.span.decoder import continuations as span_context

pytestmark = pytest.mark.oracle

FEATURES, OUTPUTS = 256, 768
KINDS = ("gpt2", "opt", "llama")


def noisy(rank: int, signal: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of unit length, and a gradient that holds them under white noise of size one, ``signal`` times its edge."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(rank, FEATURES, generator=rng, dtype=torch.float64), dim=1)
    errors = torch.nn.functional.normalize(torch.randn(rank, OUTPUTS, generator=rng, dtype=torch.float64), dim=1)
    size = signal * (math.sqrt(FEATURES) + math.sqrt(OUTPUTS))
    return x, size * x.T @ errors + torch.randn(FEATURES, OUTPUTS, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize(("rank", "columns"), [(12, 32), (40, 107), (80, 107)])
def test_few_sums_of_outputs_tilt_a_space_as_much_as_theory_says(rank: int, columns: int) -> None:
    """What a member shows outside the space agrees with the first order of noise in the sums, however full they are."""
    ratios, noises = [], []
    for seed in range(5):
        x, gradient = noisy(rank, 1e4, seed)
        found = from_sums(gradient, columns, spread=1.0)
        assert found is not None
        assert found.basis.shape[1] == rank
        left = (x - (x @ found.basis) @ found.basis.T).norm(dim=1)
        tilt = ((x @ found.basis) / found.singular).norm(dim=1) * found.noise * math.sqrt(FEATURES - rank)
        assert float(left.max()) < 1.5 * found.worst
        ratios.append(left / tilt)
        noises.append(found.noise)
    assert float(torch.cat(ratios).mean()) == pytest.approx(1.0, abs=0.05)
    assert sum(noises) / len(noises) == pytest.approx(1.0, abs=0.05)


def test_a_space_that_fills_the_sums_is_left_to_all_outputs() -> None:
    _, gradient = noisy(room(32) + 1, 1e4, 0)
    assert from_sums(gradient, 32, spread=1.0) is None
    assert from_gram(gradient, spread=1.0).basis.shape[1] == room(32) + 1


def test_range_finder_and_gram_matrix_agree() -> None:
    """Directions twenty times as strong as noise can be: members show the same residual in both spaces, that of all outputs."""
    x, gradient = noisy(20, 20.0, 0)
    one, other = from_range(gradient, 52, spread=1.0), from_gram(gradient, spread=1.0)
    assert one is not None
    assert one.basis.shape == other.basis.shape == (FEATURES, 20)
    assert torch.allclose(one.singular, other.singular, rtol=1e-3)
    assert one.noise == pytest.approx(other.noise, rel=0.05)
    residuals = [(x - (x @ each.basis) @ each.basis.T).norm(dim=1) for each in (one, other)]
    assert float(residuals[0].mean()) == pytest.approx(float(residuals[1].mean()), rel=0.02)


def tiny(kind: str) -> Subject:
    torch.manual_seed(0)
    extra: dict[str, Any] = {"ffn_dim": 64, "word_embed_proj_dim": 64} if kind == "opt" else {}
    config = transformers.AutoConfig.for_model(
        kind,
        vocab_size=300,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **({"num_key_value_heads": 2, "intermediate_size": 128} if kind == "llama" else extra),
    )
    return load_subject(transformers.AutoModelForSequenceClassification.from_config(config).eval())


@pytest.mark.parametrize("kind", KINDS)
def test_projections_by_law_are_those_of_the_module(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learned positions: token and position apart, to rounding. Rotations: no such law, and the module is run."""
    subject = tiny(kind)
    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 20, (12, 16), generator=rng)
    made = read_heads(subject, rows)
    monkeypatch.setattr(heads_law, "_WORTH", math.inf)
    seen = read_heads(subject, rows)
    assert made is not None
    assert seen is not None
    for name in ("query", "key", "value"):
        one, other = getattr(made, name), getattr(seen, name)
        assert float((one - other).norm() / other.norm()) < 2e-6
        assert torch.equal(one, other) == (kind == "llama")


@pytest.mark.parametrize("kind", KINDS)
def test_folded_and_single_continuations_are_those_of_all(kind: str) -> None:
    rng = torch.Generator().manual_seed(0)
    heads = read_heads(tiny(kind), torch.randint(3, 300, (9, 6), generator=rng))
    assert heads is not None
    prefixes, rows = torch.randint(9, (5, 4), generator=rng), torch.arange(9)
    every = heads.extend(prefixes, rows)
    columns = torch.randn(heads.width, 7, generator=rng)
    assert torch.allclose(heads.project(prefixes, rows, columns), every @ columns, rtol=1e-4, atol=1e-5)
    parents, children = torch.tensor([0, 4, 2]), torch.tensor([8, 0, 3])
    assert torch.allclose(
        heads.extend_each(prefixes[parents], children), every[parents, children], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_the_screen_changes_nothing(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four records of one small set of words: hundreds of wrong continuations, each proposed by the first test."""
    subject = tiny("gpt2")
    ids = torch.randint(3, 14, (4, 10), generator=torch.Generator().manual_seed(1))
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=torch.tensor([0, 1, 0, 1]))
    trainer = ClientTrainer(subject=subject, training=LocalTraining(dtype=dtype))
    facts = {"subject": subject, "batch_size": 4, "seq_len": 10}
    observation = Observation(update=trainer.update(batch, derive(0, "t")), knowledge=Knowledge(facts=facts))
    followed: list[int] = []
    follow = span_context.Heads.extend_each

    def counted(heads: span_context.Heads, prefixes: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        followed.append(len(rows))
        return follow(heads, prefixes, rows)

    monkeypatch.setattr(span_context.Heads, "extend_each", counted)
    monkeypatch.setattr(span_context, "_WORTH_SCREENING", 1)
    screened = Span()(observation, rng=derive(0, "attack"))
    assert followed
    monkeypatch.setattr(span_context, "_WORTH_SCREENING", math.inf)
    plain = Span()(observation, rng=derive(0, "attack"))
    assert {tuple(r.tolist()) for r in screened.records} == {tuple(r.tolist()) for r in plain.records}
    assert screened.statistics["tested"] == plain.statistics["tested"]
    assert sum(followed) < plain.statistics["tested"] / 4
