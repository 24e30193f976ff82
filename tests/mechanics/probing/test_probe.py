"""What linear layers read, against hooks on a whole forward pass; and the properties of a model that follow from it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradleak.core.rng import derive
from gradleak.mechanics.probing.probe import (
    LargestTensor,
    chunks,
    head_inputs,
    linear_inputs,
    reads_context,
    reads_position,
)
from gradleak.models import Subject
from tests.support.tiny import text_batch, text_model

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def gpt2() -> Subject:
    return text_model("gpt2")


def test_inputs_are_those_of_the_whole_pass(gpt2: Subject) -> None:
    batch = text_batch(gpt2, (5, 3))
    maps = [gpt2.anatomy.blocks[0].attention_output, gpt2.anatomy.blocks[1].mlp_inputs[0]]
    seen: dict[str, torch.Tensor] = {}
    handles = [
        gpt2.module.get_submodule(m.module).register_forward_pre_hook(
            lambda _, args, name=m.module: seen.__setitem__(name, args[0].detach())
        )
        for m in maps
    ]
    gpt2.module(input_ids=batch.inputs, attention_mask=batch.mask.long())
    for handle in handles:
        handle.remove()
    read = linear_inputs(gpt2, [m.module for m in maps], batch.inputs, mask=batch.mask)
    for name, value in read.items():
        assert not value.requires_grad
        torch.testing.assert_close(value[batch.mask], seen[name][batch.mask], rtol=1e-5, atol=1e-6)


def test_layers_behind_the_last_place_are_not_run(gpt2: Subject) -> None:
    runs: list[int] = []
    handle = gpt2.module.get_submodule(gpt2.anatomy.blocks[1].path).register_forward_hook(lambda *_: runs.append(1))
    first = gpt2.anatomy.blocks[0].attention_inputs[0].module
    linear_inputs(gpt2, [first], text_batch(gpt2).inputs)
    handle.remove()
    assert not runs


def test_other_parameters_are_used_in_the_pass_and_forgotten_afterwards(gpt2: Subject) -> None:
    path, name = gpt2.anatomy.blocks[0].attention_inputs[0].module, gpt2.anatomy.token_embedding
    ids = text_batch(gpt2).inputs
    before = linear_inputs(gpt2, [path], ids)[path]
    other = {name: torch.randn(gpt2.parameters()[name].shape, generator=derive(0, "other"))}
    assert not torch.allclose(linear_inputs(gpt2, [path], ids, parameters=other)[path], before)
    assert torch.equal(linear_inputs(gpt2, [path], ids)[path], before)


def test_a_place_that_is_never_reached_is_an_error(gpt2: Subject) -> None:
    gpt2.module.add_module("unused", torch.nn.Linear(2, 2))
    try:
        with pytest.raises(KeyError, match="unused"):
            linear_inputs(gpt2, ["unused"], text_batch(gpt2).inputs)
    finally:
        del gpt2.module.unused


def test_the_head_reads_one_vector_per_record(gpt2: Subject) -> None:
    bert, batch = text_model("bert"), text_batch(text_model("bert"), (5, 3))
    head = bert.anatomy.head
    assert head is not None
    features = head_inputs(bert, head.module, batch.inputs, batch.mask)
    weight, bias = bert.parameters()[head.weight], bert.parameters()[head.bias or ""]
    logits = bert.logits(None, inputs=batch.inputs, mask=batch.mask)
    torch.testing.assert_close(features @ weight.T + bias, logits, rtol=1e-5, atol=1e-5)


@given(count=st.integers(0, 50), each=st.integers(0, 3_000_000))
def test_chunks_cover_everything_once_and_stay_small(count: int, each: int) -> None:
    parts = list(chunks(count, each))
    assert [i for part in parts for i in range(count)[part]] == list(range(count))
    assert all((part.stop - part.start) * each <= 1_000_000 or part.stop - part.start == 1 for part in parts)


@pytest.mark.parametrize(("kind", "position"), [("gpt2", True), ("bert", True), ("llama", False)])
def test_whether_positions_enter_the_first_input(kind: str, position: bool) -> None:
    subject, ids = text_model(kind), torch.tensor([7, 20, 31])
    first = subject.anatomy.blocks[0].attention_inputs[0].module
    second = subject.anatomy.blocks[1].attention_inputs[0].module
    assert reads_position(subject, first, ids, positions=4) is position
    assert not reads_context(subject, first, ids) and reads_context(subject, second, ids)


def test_the_largest_tensor_is_counted() -> None:
    with LargestTensor() as largest:
        (torch.ones(10, 1) @ torch.ones(1, 7)).sum()
    assert largest.numel == 70
