"""Continuations: folded, single and screened ones are those of all."""

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
from gradleak.mechanics.probing.heads import read_heads
from gradleak.models import Subject, load_subject
from gradleak.span.decoder import continuations as span_context

pytestmark = pytest.mark.oracle
KINDS = ("gpt2", "opt", "llama")


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
    # Wrong prefixes die at the second block, and so most continuations that are left are right ones.
    assert sum(followed) < plain.statistics["tested"] / 2
