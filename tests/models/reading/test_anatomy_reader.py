"""What the reader finds by data flow, against names written down by hand and against gradients of the real model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from gradleak.models import Subject, load_subject, read_anatomy
from gradleak.models.anatomy import LinearMap

pytestmark = pytest.mark.oracle

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 300}
PIXELS = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "image_size": 32, "patch_size": 16}


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Paths inside a block, as the architecture's documentation names them."""

    block: str
    inputs: str
    output: str
    mlp: str
    mlp_output: str
    norms: int
    kind: str = "decoder"
    positions: str = "rotary"
    kv_heads: int = 4
    tied: bool = False
    latent: str = ""
    gates: str = ""


LLAMA = {
    "block": "model.layers.{}",
    "inputs": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "output": "self_attn.o_proj",
    "mlp": "mlp.gate_proj mlp.up_proj",
    "mlp_output": "mlp.down_proj",
}
EXPERTS = {"mlp": "", "mlp_output": ""}
BERT = {
    "inputs": "attention.self.query attention.self.key attention.self.value",
    "output": "attention.output.dense",
    "mlp": "intermediate.dense",
    "mlp_output": "output.dense",
    "norms": 2,
    "kind": "encoder",
    "positions": "learned",
}
VIT = {
    "inputs": "attention.q_proj attention.k_proj attention.v_proj",
    "output": "attention.o_proj",
    "mlp": "mlp.fc1",
    "mlp_output": "mlp.fc2",
    "norms": 2,
    "kind": "vision",
    "positions": "learned",
}
GPT2 = {
    "block": "transformer.h.{}",
    "inputs": "attn.c_attn",
    "output": "attn.c_proj",
    "mlp": "mlp.c_fc",
    "mlp_output": "mlp.c_proj",
    "norms": 2,
    "positions": "learned",
    "tied": True,
}

EXPECTED = {
    "gpt2": Expected(**GPT2),
    "gpt_bigcode": Expected(**GPT2, kv_heads=1),
    "llama": Expected(**LLAMA, norms=2),
    "mistral": Expected(**LLAMA, norms=2, kv_heads=1),
    "qwen2": Expected(**LLAMA, norms=2),
    "qwen3": Expected(**LLAMA, norms=4),
    "gemma": Expected(**LLAMA, norms=2, tied=True),
    "gemma2": Expected(**LLAMA, norms=4, kv_heads=2, tied=True),
    "gemma3_text": Expected(**LLAMA, norms=6, kv_heads=2, tied=True),
    "olmo2": Expected(**LLAMA, norms=4),
    "opt": Expected(
        block="model.decoder.layers.{}",
        inputs="self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        output="self_attn.out_proj",
        mlp="fc1",
        mlp_output="fc2",
        norms=2,
        positions="learned",
        tied=True,
    ),
    "gpt_neox": Expected(
        block="gpt_neox.layers.{}",
        inputs="attention.query_key_value",
        output="attention.dense",
        mlp="mlp.dense_h_to_4h",
        mlp_output="mlp.dense_4h_to_h",
        norms=2,
    ),
    "gptj": Expected(
        block="transformer.h.{}",
        inputs="attn.q_proj attn.k_proj attn.v_proj",
        output="attn.out_proj",
        mlp="mlp.fc_in",
        mlp_output="mlp.fc_out",
        norms=1,
    ),
    "phi": Expected(
        block="model.layers.{}",
        inputs="self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        output="self_attn.dense",
        mlp="mlp.fc1",
        mlp_output="mlp.fc2",
        norms=1,
    ),
    "phi3": Expected(
        block="model.layers.{}",
        inputs="self_attn.qkv_proj",
        output="self_attn.o_proj",
        mlp="mlp.gate_up_proj",
        mlp_output="mlp.down_proj",
        norms=2,
    ),
    "mpt": Expected(
        block="transformer.blocks.{}",
        inputs="attn.Wqkv",
        output="attn.out_proj",
        mlp="ffn.up_proj",
        mlp_output="ffn.down_proj",
        norms=2,
        positions="alibi",
        tied=True,
    ),
    "bloom": Expected(
        block="transformer.h.{}",
        inputs="self_attention.query_key_value",
        output="self_attention.dense",
        mlp="mlp.dense_h_to_4h",
        mlp_output="mlp.dense_4h_to_h",
        norms=2,
        positions="alibi",
        tied=True,
    ),
    # Queries, keys and values are made of compressed inputs; the first blocks of this type have no experts.
    "deepseek_v3": Expected(
        **LLAMA | {"inputs": "self_attn.q_a_proj self_attn.kv_a_proj_with_mqa"},
        latent="self_attn.q_b_proj self_attn.kv_b_proj",
        norms=4,
    ),
    "afmoe": Expected(**LLAMA, gates="self_attn.gate_proj", norms=6, kv_heads=4),
    # Experts are stacks of matrices, and a router is no part of the feed-forward maps.
    "mixtral": Expected(**LLAMA | EXPERTS, norms=2, kv_heads=1),
    "qwen3_moe": Expected(**LLAMA | EXPERTS, norms=4, kv_heads=1),
    "gpt_oss": Expected(**LLAMA | EXPERTS, norms=2, kv_heads=1),
    "bert": Expected(**BERT, block="bert.encoder.layer.{}", tied=True),
    "roberta": Expected(**BERT, block="roberta.encoder.layer.{}", tied=True),
    "electra": Expected(**BERT, block="electra.encoder.layer.{}"),
    "distilbert": Expected(
        block="distilbert.transformer.layer.{}",
        inputs="attention.q_lin attention.k_lin attention.v_lin",
        output="attention.out_lin",
        mlp="ffn.lin1",
        mlp_output="ffn.lin2",
        norms=2,
        kind="encoder",
        positions="learned",
        tied=True,
    ),
    "modernbert": Expected(
        block="model.layers.{}",
        inputs="attn.Wqkv",
        output="attn.Wo",
        mlp="mlp.Wi",
        mlp_output="mlp.Wo",
        norms=2,
        kind="encoder",
        tied=True,
    ),
    "vit": Expected(**VIT, block="vit.layers.{}"),
    "deit": Expected(**VIT, block="deit.layers.{}"),
}

EXTRA = {"electra": {"embedding_size": 32}, "olmo2": {"pad_token_id": None}, "afmoe": {"num_dense_layers": 2}}
LOSS = {"decoder": "causal-lm", "encoder": "masked-lm", "vision": "classification"}


@cache
def subject_of(model_type: str) -> Subject:
    kind = EXPECTED[model_type].kind
    settings = PIXELS if kind == "vision" else SMALL | EXTRA.get(model_type, {})
    return load_subject(f"random:{model_type}", loss=LOSS[kind], settings=settings)


def inputs_of(subject: Subject, rows: int = 2) -> dict[str, Tensor]:
    """A batch without padding, of random ids or pixels."""
    rng = torch.Generator().manual_seed(0)
    if subject.modality == "image":
        return {"pixels": torch.rand(rows, *subject.pixel_shape, generator=rng)}
    return {"inputs": torch.randint(1, 250, (rows, 7), generator=rng), "mask": torch.ones(rows, 7, dtype=torch.bool)}


@pytest.mark.parametrize("model_type", EXPECTED)
def test_roles_are_those_of_the_documented_names(model_type: str) -> None:
    expected, anatomy = EXPECTED[model_type], subject_of(model_type).anatomy
    assert len(anatomy.blocks) == 2
    for index, block in enumerate(anatomy.blocks):
        prefix = expected.block.format(index)

        def paths(names: str, prefix: str = prefix) -> list[str]:
            return [f"{prefix}.{name}" for name in names.split()]

        assert [each.module for each in block.attention_inputs] == paths(expected.inputs)
        assert block.fused == (len(block.attention_inputs) == 1)
        assert [each.module for each in block.latent] == paths(expected.latent)
        assert [each.module for each in block.gates] == paths(expected.gates)
        assert block.plain == (not expected.latent and not expected.gates)
        assert [block.attention_output.module] == paths(expected.output)
        assert [each.module for each in block.mlp_inputs] == paths(expected.mlp)
        assert [each.module for each in (block.mlp_output,) if each is not None] == paths(expected.mlp_output)
        # ModernBERT has no norm before its first attention.
        assert len(block.norms) == expected.norms - (model_type == "modernbert" and index == 0)
        assert (block.heads, block.kv_heads) == (4, expected.kv_heads)
    assert (anatomy.kind, anatomy.position_kind) == (expected.kind, expected.positions)
    assert (anatomy.hidden_size, anatomy.vocab_size) == (32, 0 if expected.kind == "vision" else 300)


@pytest.mark.parametrize("model_type", EXPECTED)
def test_tied_is_what_the_memory_says(model_type: str) -> None:
    subject = subject_of(model_type)
    head = subject.module.get_output_embeddings()
    table = subject.module.get_input_embeddings()
    shared = head is not None and head.weight.data_ptr() == table.weight.data_ptr()
    assert subject.anatomy.tied == shared
    assert subject.anatomy.tied == EXPECTED[model_type].tied or model_type == "electra"


@pytest.mark.parametrize("model_type", EXPECTED)
def test_every_map_is_the_product_it_claims(model_type: str) -> None:
    """The output of each named module is W x + b, with W, b and orientation as the anatomy says."""
    subject = subject_of(model_type)
    parameters = subject.parameters()
    for each, read, made in _runs_of_maps(subject):
        product = read @ each.as_matrix(parameters[each.weight]).T
        if each.bias is not None:
            product = product + parameters[each.bias]
        torch.testing.assert_close(product, made, atol=1e-5, rtol=1e-4)
        assert (each.in_features, each.out_features) == (read.shape[-1], made.shape[-1])


@pytest.mark.parametrize("model_type", EXPECTED)
def test_gradients_of_attention_inputs_lie_in_the_span_of_one_shared_input(model_type: str) -> None:
    """dL/dW = sum over tokens of (dL/dy) x^T: its rows are combinations of the inputs x, the same for q, k and v."""
    subject = subject_of(model_type)
    block = subject.anatomy.blocks[0]
    inputs = inputs_of(subject, rows=1)
    reads = {each.module: read for each, read, _ in _runs_of_maps(subject, rows=1)}
    first, *others = (reads[each.module] for each in block.attention_inputs)
    assert all(torch.equal(first, other) for other in others)
    logits = subject.logits(**inputs)
    weights = [subject.parameters()[each.weight] for each in block.attention_inputs]
    gradients = torch.autograd.grad(logits.square().mean(), weights)
    basis = torch.linalg.qr(first.reshape(-1, first.shape[-1]).T.double()).Q
    assert basis.shape[1] < basis.shape[0]
    for each, gradient in zip(block.attention_inputs, gradients, strict=True):
        matrix = each.as_matrix(gradient).double()
        outside = matrix - matrix @ basis @ basis.T
        assert matrix.norm() > 0
        assert outside.norm() <= 1e-4 * matrix.norm()


@pytest.mark.parametrize("model_type", [name for name in EXPECTED if EXPECTED[name].kind != "vision"])
def test_kind_is_what_changing_the_last_token_shows(model_type: str) -> None:
    subject = subject_of(model_type)
    inputs = inputs_of(subject, rows=1)
    changed = inputs | {"inputs": inputs["inputs"].clone()}
    changed["inputs"][0, -1] = 5
    before, after = (subject.logits(**each)[0, 0] for each in (inputs, changed))
    # Not bitwise: experts add what they make in an order that the other tokens decide.
    same = torch.allclose(before, after, rtol=0.0, atol=1e-7)
    assert same == (subject.anatomy.kind == "decoder")


@pytest.mark.parametrize("model_type", [name for name in EXPECTED if EXPECTED[name].positions == "learned"])
def test_learned_positions_are_as_many_as_fit(model_type: str) -> None:
    subject = subject_of(model_type)
    assert subject.anatomy.position_embedding in subject.parameters()
    if subject.modality == "image":
        return
    longest = subject.anatomy.max_positions
    assert longest is not None
    subject.logits(inputs=torch.full((1, longest), 7), mask=torch.ones(1, longest, dtype=torch.bool))
    too_long = longest + 1
    with pytest.raises((IndexError, RuntimeError)):
        subject.logits(inputs=torch.full((1, too_long), 7), mask=torch.ones(1, too_long, dtype=torch.bool))


def test_alibi_is_told_from_rotary_in_one_architecture() -> None:
    settings = SMALL | {"alibi": True}
    assert load_subject("random:falcon", settings=settings).anatomy.position_kind == "alibi"
    assert load_subject("random:falcon", settings=settings | {"alibi": False}).anatomy.position_kind == "rotary"


def test_shared_layers_are_listed_once() -> None:
    subject = load_subject("random:albert", settings=SMALL | {"num_hidden_layers": 3})
    assert len(subject.anatomy.blocks) == 1


def test_reading_leaves_the_module_as_it_was() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=300
    )
    module = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    read_anatomy(module)
    assert module.config._attn_implementation == "sdpa"
    assert all(child.training for child in module.modules())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_frozen_parameters_do_not_hide_the_anatomy() -> None:
    subject = load_subject("random:gpt2", settings=SMALL)
    whole = subject.anatomy
    subject.module.requires_grad_(False)
    assert read_anatomy(subject.module) == whole


def _runs_of_maps(subject: Subject, rows: int = 2) -> list[tuple[LinearMap, Tensor, Tensor]]:
    """Every map of the anatomy with what its module really read and made in a forward."""
    maps = [each for block in subject.anatomy.blocks for each in block.maps()]
    assert subject.anatomy.head is not None
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        subject.module.get_submodule(each.module).register_forward_hook(
            lambda _, args, made, path=each.module: seen.update({path: (args[0].detach(), made.detach())})
        )
        for each in (*maps, subject.anatomy.head)
    ]
    subject.logits(**inputs_of(subject, rows))
    for handle in handles:
        handle.remove()
    return [(each, *seen[each.module]) for each in (*maps, subject.anatomy.head)]


class _Cell(nn.Module):
    """A block that computes values first and queries last, under names that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.e, self.f = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        value, key, query = (each(hidden).unflatten(-1, (2, 4)).transpose(1, 2) for each in (self.a, self.b, self.c))
        weights = torch.softmax(query @ key.transpose(-1, -2) / 2, dim=-1)
        hidden = hidden + self.d((weights @ value).transpose(1, 2).flatten(2))
        return hidden + self.f(torch.relu(self.e(hidden)))


class _Plain(nn.Module):
    """A hand-made encoder with a tied head and no positions."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=2)
        self.table = nn.Embedding(50, 8)
        self.cell = _Cell()
        self.top = nn.Linear(8, 50, bias=False)
        self.top.weight = self.table.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None) -> SimpleNamespace:
        return SimpleNamespace(logits=self.top(self.cell(inputs_embeds)))


def test_roles_follow_the_data_flow_and_not_the_order_or_the_names() -> None:
    torch.manual_seed(0)
    anatomy = read_anatomy(_Plain())
    (block,) = anatomy.blocks
    assert [each.module for each in block.attention_inputs] == ["cell.c", "cell.b", "cell.a"]
    assert block.attention_output.module == "cell.d"
    assert (anatomy.kind, anatomy.position_kind, anatomy.tied) == ("encoder", "none", True)
