"""What kept queries, keys, values and streams say a map reads is what it reads when the model is run, also of tokens that came later."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.core.rng import derive
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.models import load_subject
from gradleak.span.decoder.token_cache import TokenCache

pytestmark = pytest.mark.oracle

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}


def made(kind: str) -> tuple[Model, tuple[str, ...]]:
    subject = load_subject(f"random:{kind}", loss="causal-lm", settings=SIZES)
    block = subject.anatomy.blocks[0]
    behind = [each.module for each in block.behind_attention()[1:2]]
    return Model(subject=subject), (subject.anatomy.first_maps()[0].module, block.attention_output.module, *behind)


def seen(model: Model, paths: tuple[str, ...], ids: Tensor) -> list[Tensor]:
    found = linear_inputs(model.subject, paths, ids)
    return [torch.nn.functional.normalize(found[path].double(), dim=-1) for path in paths]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gpt_neox", "opt"])
def test_kept_rows_are_those_of_the_model(kind: str) -> None:
    model, paths = made(kind)
    ids = torch.randint(6, 300, (5, 6), generator=derive(0, kind))
    kept = TokenCache.of(model, paths, ids[:2].unique().tolist(), 6)
    assert kept is not None
    # A parallel block feeds its feed-forward part from elsewhere, and then that place is not served.
    assert kept.paths == (paths[:2] if kind == "gpt_neox" else paths)
    whole = kept.rows(kept.numbers(ids))
    for one, other in zip(whole, seen(model, kept.paths, ids), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    for before in (0, 1, 4):
        options = torch.randint(6, 300, (7,), generator=derive(before, kind))
        tried = torch.cat((ids[:, :before].repeat_interleave(7, 0), options.repeat(5).unsqueeze(1)), dim=1)
        grown = kept.extend(kept.numbers(ids[:, :before]), kept.numbers(options))
        for one, other in zip(grown, seen(model, kept.paths, tried), strict=True):
            assert torch.allclose(one.flatten(0, 1), other[:, -1], atol=1e-5)


def test_places_in_another_order_are_not_served() -> None:
    model, paths = made("gpt2")
    assert TokenCache.of(model, paths[::-1], [1, 2], 4) is None
