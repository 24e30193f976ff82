"""Projections of continuations by law against those of the module."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers

from gradleak.mechanics.probing import closed_form as heads_law
from gradleak.mechanics.probing.heads import read_heads
from gradleak.models import Subject, load_subject

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
