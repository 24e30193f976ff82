"""Adapters are found by what they do, change nothing else of the anatomy, and share A and B only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

import gradleak
from gradleak.core.errors import ModelError, SpecError, UsageError
from gradleak.core.rng import derive
from gradleak.harness.request.batches import read_batch
from gradleak.harness.request.shares import parse_share, share_spec
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Anatomy, LoRA, Subject, load_subject, read_anatomy, with_lora

pytestmark = pytest.mark.oracle

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 300}
SECRETS = ["the surgery is set", "call me at noon"]


def subject_of(model_type: str, loss: str = "classification") -> Subject:
    return load_subject(f"random:{model_type}", loss=loss, settings=SIZES)


def bare(anatomy: Anatomy) -> list[object]:
    """The anatomy without what wraps a linear map."""

    def plain(name: str | None) -> str | None:
        return None if name is None else name.replace(".base_layer", "").replace(".base", "")

    maps = [
        (plain(m.module), plain(m.weight), plain(m.bias), m.in_features, m.out_features, m.input_first)
        for block in anatomy.blocks
        for m in block.maps()
    ]
    rest = [(b.norms, b.heads, b.kv_heads, b.fused) for b in anatomy.blocks]
    return [maps, rest, anatomy.kind, anatomy.position_kind, anatomy.per_token, anatomy.head, anatomy.tied]


@pytest.mark.parametrize("model_type", ("gpt2", "llama", "gpt_neox", "mpt", "phi", "bert", "distilbert", "vit"))
@pytest.mark.parametrize(("targets", "b_std"), (("attention", 0.0), ("all", 0.02)))
def test_the_anatomy_is_that_of_the_model_without_adapters(model_type: str, targets: str, b_std: float) -> None:
    settings = {key: value for key, value in SIZES.items() if model_type != "vit" or key != "vocab_size"}
    subject = load_subject(f"random:{model_type}", settings=settings)
    before = bare(subject.anatomy)
    maps = [m for b in subject.anatomy.blocks for m in (b.attention_inputs if targets == "attention" else b.maps())]
    after = with_lora(subject, LoRA(rank=3, targets=targets, b_std=b_std), seed=0).anatomy
    assert bare(after) == before
    sizes = [(a.rank, a.down.in_features, a.up.out_features) for a in after.adapters]
    assert sorted(sizes) == sorted((3, m.in_features, m.out_features) for m in maps)
    targeted = after.adapters_of(after.blocks[0].attention_inputs)
    assert {a.target for a in targeted} == {m.module for m in after.blocks[0].attention_inputs}


class Corrected(nn.Module):
    """A low-rank correction written by hand, with names of its own."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.thin, self.wide = (
            nn.Linear(base.in_features, rank, bias=False),
            nn.Linear(rank, base.out_features, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.wide(self.thin(x))


def test_adapters_of_another_make_are_found_by_their_data_flow() -> None:
    subject = subject_of("llama")
    before = bare(subject.anatomy)
    with torch.random.fork_rng():
        for block in subject.module.model.layers:
            block.self_attn.v_proj = Corrected(block.self_attn.v_proj, 5)
            block.mlp.down_proj = Corrected(block.mlp.down_proj, 5)
    after = read_anatomy(subject.module)
    assert bare(after) == before
    assert [a.target.rsplit(".", 2)[1] for a in after.adapters] == ["v_proj", "down_proj"] * 2
    assert all(a.rank == 5 and a.down.module.endswith("thin") and a.up.module.endswith("wide") for a in after.adapters)


def test_models_without_adapters_have_none() -> None:
    for model_type in ("gpt2", "llama", "gpt_neox", "bert", "vit", "gemma2"):
        settings = {key: value for key, value in SIZES.items() if model_type != "vit" or key != "vocab_size"}
        assert load_subject(f"random:{model_type}", settings=settings).anatomy.adapters == ()


@pytest.mark.parametrize("model_type", ("llama", "gpt2"))
@pytest.mark.parametrize("b_std", (0.0, 0.05))
def test_adapter_gradients_are_those_of_the_full_weight_seen_through_the_other_factor(
    model_type: str, b_std: float
) -> None:
    """dL/dB = s G Aᵀ and dL/dA = s Bᵀ G with G = dL/dW of the corrected map, an independent gradient."""
    subject = with_lora(subject_of(model_type), LoRA(rank=4, alpha=12, b_std=b_std), seed=1)
    batch = read_batch(SECRETS, subject, max_length=8, seed=0)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    update = trainer.update(batch, derive(0))
    thin = {name for a in subject.anatomy.adapters for name in (a.down.weight, a.up.weight)}
    assert set(update) == thin
    maps = {m.module: m for block in subject.anatomy.blocks for m in block.maps()}
    parameters = subject.parameters()
    for adapter in subject.anatomy.adapters:
        full = maps[adapter.target]
        weight = parameters[full.weight].detach().requires_grad_()
        logits = subject.logits({full.weight: weight}, inputs=batch.inputs, mask=batch.mask)
        targets = torch.nn.functional.one_hot(batch.labels, subject.classes).float()
        (stored,) = torch.autograd.grad(subject.loss.per_group(logits, targets).sum(), weight)
        gradient = full.as_matrix(stored)
        down, up = parameters[adapter.down.weight], parameters[adapter.up.weight]
        torch.testing.assert_close(update[adapter.up.weight], 3 * gradient @ down.T, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(update[adapter.down.weight], 3 * up.T @ gradient, rtol=1e-3, atol=1e-6)
        assert bool(update[adapter.down.weight].any()) is (b_std > 0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
def test_a_peft_model_is_audited_as_it_is_and_keeps_its_names(tmp_path: Path) -> None:
    module = subject_of("llama").module
    wrapped = get_peft_model(module, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type=TaskType.SEQ_CLS))
    audit = gradleak.audit(wrapped, SECRETS, attacks="tag(iterations=2)", out=tmp_path / "run")
    assert audit.records[0].status["name"] != "NOT_APPLICABLE"
    subject = load_subject(wrapped)
    assert len(subject.anatomy.adapters) == 4
    names = {name for name, value in wrapped.named_parameters() if value.requires_grad}
    assert {f"base_model.model.{name}" for name in subject.trainable()} == names
    # peft trains the head of a classifier beside the adapters.
    assert sum("lora" not in name for name in names) == 1
    # Gradients under the wrapper's names, and under those of peft's own state dict, are the same observation.
    trained = {name: torch.randn(value.shape, generator=derive(0, name)) for name, value in subject.trainable().items()}
    gradleak.capture({f"base_model.model.{name}": value for name, value in trained.items()}, tmp_path / "wrapped")
    seen = gradleak.load_observation(tmp_path / "wrapped", subject).update
    assert set(seen) == set(trained) and all(torch.equal(seen[name], trained[name]) for name in trained)
    state = {name: value for name, value in get_peft_model_state_dict(wrapped).items() if "lora" in name}
    gradleak.capture(state, tmp_path / "state")
    again = gradleak.load_observation(tmp_path / "state", subject).update
    assert all(torch.equal(again[name], subject.parameters()[name]) for name in again) and len(again) == 8


def test_lora_is_written_as_a_share() -> None:
    short = parse_share("lora(rank=16, targets=all)")
    assert short == LocalTraining(lora_rank=16, lora_targets="all")
    assert short.lora == LoRA(rank=16, targets="all")
    steps = parse_share("lora(rank=8, alpha=8, steps=5, lr=0.01)")
    assert steps == LocalTraining(share="delta", steps=5, lr=0.01, lora_rank=8, lora_alpha=8)
    assert parse_share(str(share_spec(steps))) == steps
    assert LocalTraining().lora is None
    for text, reason in (("lora", "rank"), ("lora(rank=0)", "rank"), ("lora(rank=4, targets=some)", "targets")):
        with pytest.raises(SpecError, match=reason):
            parse_share(text)


def test_wrong_uses_are_refused(tmp_path: Path) -> None:
    subject = with_lora(subject_of("gpt2"), LoRA(rank=2), seed=0)
    with pytest.raises(ModelError, match="adapters already"):
        with_lora(subject, LoRA(rank=2), seed=0)
    with pytest.raises(ModelError, match="by one map each"):
        with_lora(subject_of("gpt2"), LoRA(rank=2, targets="query_value"), seed=0)
    with pytest.raises(UsageError, match="peft yourself"):
        gradleak.audit(subject_of("llama").module, SECRETS, share="lora(rank=2)", out=tmp_path / "run")


def test_the_seed_decides_the_adapters_and_nothing_else() -> None:
    state = torch.get_rng_state()
    one, same, other = (with_lora(subject_of("llama"), LoRA(rank=2, b_std=0.1), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, same.parameters()[name]) for name, value in one.parameters().items())
    adapter = one.anatomy.adapters[0]
    assert not torch.equal(one.parameters()[adapter.down.weight], other.parameters()[adapter.down.weight])
