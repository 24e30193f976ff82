"""The law of the first attention's input, against what the module itself reads, token by token and position by position."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.rng import derive
from gradleak.mechanics.probing.first_input import Norm, read_first_input, read_norm
from gradleak.mechanics.probing.probe import linear_inputs
from tests.support.tiny import text_model

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama", "gemma", "gpt_neox"])
def test_rows_and_projections_are_what_the_module_reads(kind: str) -> None:
    subject = text_model(kind)
    path = subject.anatomy.blocks[0].attention_inputs[0].module
    law = read_first_input(subject, path, positions=4)
    assert law is not None
    tokens = torch.tensor([7, 23, 64, 99])
    read = linear_inputs(subject, [path], tokens.unsqueeze(1).expand(-1, 4))[path]
    rows = law.rows(tokens)
    # The small constant under the root of a normalization only scales a vector, so directions are compared.
    torch.testing.assert_close(
        torch.nn.functional.normalize(rows, dim=-1), torch.nn.functional.normalize(read, dim=-1), rtol=0, atol=2e-4
    )
    directions = torch.randn(rows.shape[-1], 3, generator=derive(0, "directions"))
    torch.testing.assert_close(law.project(tokens, directions), rows @ directions, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("centered", [True, False])
def test_a_folded_direction_reads_before_the_normalization_what_it_reads_behind(centered: bool) -> None:
    rng = derive(1, "norm")
    gain, x, directions = torch.rand(12, generator=rng) + 0.5, torch.randn(5, 12, generator=rng), torch.eye(12)
    norm = Norm(gain=gain, offset=torch.zeros(12), centered=centered, normalized=True)
    body = x - x.mean(1, keepdim=True) if centered else x
    torch.testing.assert_close(x @ norm.fold(directions), gain * body)


def test_both_kinds_of_normalization_are_told_apart() -> None:
    x = torch.randn(2, 3, 8, generator=derive(2, "norm"))
    layer, root = torch.nn.LayerNorm(8), torch.nn.RMSNorm(8)
    with torch.no_grad():
        for norm in (layer, root):
            norm.weight.uniform_(0.5, 1.5, generator=derive(3, "gain"))
        layer.bias.uniform_(-1, 1, generator=derive(4, "offset"))
        laws = [read_norm(norm, x, norm(x)) for norm in (layer, root)]
    assert [law and law.centered for law in laws] == [True, False]
    assert laws[0] is not None
    torch.testing.assert_close(laws[0].gain, layer.weight.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(laws[0].offset, layer.bias.detach(), rtol=1e-4, atol=1e-5)


def test_what_is_no_normalization_has_no_law() -> None:
    x = torch.randn(2, 3, 8, generator=derive(5, "norm"))
    assert read_norm(torch.nn.LayerNorm(8), x, x.square()) is None
    absent = read_norm(None, x, x)
    assert absent is not None and not absent.normalized and torch.equal(absent.fold(torch.eye(8)), torch.eye(8))


def test_an_input_behind_attention_follows_no_such_law() -> None:
    subject = text_model("gpt2")
    assert read_first_input(subject, subject.anatomy.blocks[1].attention_inputs[0].module, positions=4) is None
