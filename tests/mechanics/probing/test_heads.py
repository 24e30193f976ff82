"""Attention from stored queries, keys and values, against the module run on whole sequences and a plain loop."""

from __future__ import annotations

import math

import pytest
import torch

from gradleak.core.rng import derive
from gradleak.mechanics.probing.heads import Heads, read_heads, relative_rotations
from gradleak.mechanics.probing.probe import linear_inputs
from tests.support.tiny import text_model

pytestmark = pytest.mark.oracle

DECODERS = ("gpt2", "llama", "gpt_neox")


def random_heads(*, kv_heads: int, soft_cap: float | None, biased: bool) -> Heads:
    rng = derive(kv_heads, "heads")
    query, key, value = (
        torch.randn(6, 4, heads, 3, generator=rng, dtype=torch.float64) for heads in (4, kv_heads, kv_heads)
    )
    bias = torch.randn(4 if biased else 1, 4, 4, generator=rng, dtype=torch.float64) * biased
    return Heads(query=query, key=key, value=value, bias=bias, scale=1 / math.sqrt(3), soft_cap=soft_cap)


def by_hand(heads: Heads, sequence: list[int]) -> torch.Tensor:
    """What the last position of a sequence of candidate rows gets, head by head and key by key."""
    last, parts = len(sequence) - 1, []
    for head in range(heads.query.shape[2]):
        shared = head // heads.groups
        scores = []
        for place, row in enumerate(sequence):
            score = float(heads.query[sequence[last], last, head] @ heads.key[row, place, shared]) * heads.scale
            if heads.soft_cap is not None:
                score = math.tanh(score / heads.soft_cap) * heads.soft_cap
            scores.append(score + float(heads.bias[head if len(heads.bias) > 1 else 0, last, place]))
        weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
        parts.append(
            sum(w * heads.value[row, p, shared] for p, (w, row) in enumerate(zip(weights, sequence, strict=True)))
        )
    return torch.cat(parts)


@pytest.mark.parametrize(("kv_heads", "soft_cap", "biased"), [(4, None, False), (2, None, True), (1, 1.5, True)])
def test_every_way_to_extend_a_prefix_is_attention(kv_heads: int, soft_cap: float | None, biased: bool) -> None:
    heads = random_heads(kv_heads=kv_heads, soft_cap=soft_cap, biased=biased)
    prefixes, rows = torch.tensor([[0, 1, 2], [5, 3, 0]]), torch.tensor([4, 1, 2])
    extended = heads.extend(prefixes, rows)
    for i, prefix in enumerate(prefixes.tolist()):
        for j, row in enumerate(rows.tolist()):
            torch.testing.assert_close(extended[i, j], by_hand(heads, [*prefix, row]))
    pairs = heads.extend_each(prefixes[[0, 1, 1]], rows)
    torch.testing.assert_close(pairs, extended[[0, 1, 1], [0, 1, 2]])
    columns = torch.randn(heads.width, 5, generator=derive(9, "columns"), dtype=torch.float64)
    torch.testing.assert_close(heads.project(prefixes, rows, columns), extended @ columns)
    weights = heads.weights(prefixes, rows)
    torch.testing.assert_close(weights.sum(3), torch.ones_like(weights.sum(3)))


@pytest.mark.parametrize("kind", DECODERS)
def test_the_module_hands_on_what_the_stored_heads_do(kind: str) -> None:
    subject = text_model(kind)
    ids = torch.randint(5, 200, (3, 6), generator=derive(0, "ids"))
    heads = read_heads(subject, ids)
    assert heads is not None
    output = subject.anatomy.blocks[0].attention_output.module
    read = linear_inputs(subject, [output], ids)[output][:, -1]
    own = torch.arange(3)
    torch.testing.assert_close(heads.extend_each(own.unsqueeze(1).expand(-1, 5), own), read, rtol=1e-4, atol=1e-5)


def test_a_later_start_leaves_out_what_came_before() -> None:
    heads = random_heads(kv_heads=2, soft_cap=None, biased=True)
    later = heads.since(1)
    assert later.query.shape[1] == 3 and later.bias.shape[1:] == (3, 3)
    assert torch.equal(later.bias, heads.bias[:, 1:, 1:]) and torch.equal(later.key[:, 0], heads.key[:, 1])


def test_rotations_turn_keys_from_the_first_position_to_every_other() -> None:
    turned = relative_rotations(text_model("llama"), length=4, rng=derive(1, "rotations"))
    assert turned is not None
    torch.testing.assert_close(turned[0], torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-4)
    for rotation in turned:
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(turned[1] @ turned[1], turned[2], rtol=0, atol=1e-3)
    assert relative_rotations(text_model("gpt2"), length=4, rng=derive(1, "rotations")) is None
