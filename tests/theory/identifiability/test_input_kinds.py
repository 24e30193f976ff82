"""How a token enters the first attention, read by running the model, against what is known of the architectures."""

from __future__ import annotations

import pytest
import torch

from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.theory.identifiability.input_kinds import InputLaw, read_input_law
from tests.support.tiny import text_model

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize(
    ("kind", "positional", "rotary", "normalization"),
    [
        ("gpt2", True, False, "layer"),
        ("bert", True, False, "layer"),
        ("opt", True, False, "layer"),
        ("llama", False, True, "rms"),
        ("gpt_neox", False, True, "layer"),
        ("gemma", False, True, "rms"),
    ],
)
def test_known_architectures(kind: str, positional: bool, rotary: bool, normalization: str) -> None:
    extra = {"ffn_dim": 64, "word_embed_proj_dim": 32} if kind == "opt" else {}
    law = read_input_law(text_model(kind, **extra), positions=6)
    assert (law.positional, law.rotary, law.normalization) == (positional, rotary, normalization)
    assert law.width == 32


@pytest.mark.parametrize(
    ("normalization", "bias", "room"),
    [("layer", False, 31), ("layer", True, 32), ("rms", False, 32), ("none", False, 32)],
)
def test_centering_takes_a_dimension_and_a_bias_gives_it_back(normalization: str, bias: bool, room: int) -> None:
    law = InputLaw(positional=True, rotary=False, normalization=normalization, bias=bias, width=32)  # type: ignore[arg-type]
    assert law.room == room


@pytest.mark.parametrize("bias", [False, True])
def test_the_room_is_the_rank_of_many_inputs(bias: bool) -> None:
    """Of gpt2 with one gain for all features, so that centering shows as a rank."""
    subject = text_model("gpt2")
    norm = subject.module.get_submodule(f"{subject.anatomy.blocks[0].path}.ln_1")
    with torch.no_grad():
        norm.bias.copy_(torch.linspace(-1, 2, 32) * bias)
    path = subject.anatomy.blocks[0].attention_inputs[0].module
    inputs = linear_inputs(subject, [path], torch.arange(5, 105).view(20, 5))[path].flatten(0, 1).double()
    law = read_input_law(subject, positions=5)
    assert law.bias is bias and int(torch.linalg.matrix_rank(inputs, rtol=1e-5)) == law.room
