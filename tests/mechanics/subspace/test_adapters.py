"""What adapter gradients hold, against the linear algebra written out: spans of inputs, of A x, of keys and of queries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.mechanics.subspace.adapters import Shared, adapter_space
from gradleak.mechanics.subspace.subspace import Subspace
from gradleak.models import LoRA, Subject, load_subject, with_lora

pytestmark = pytest.mark.oracle

SIZES = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 300}


def adapted(model_type: str, rank: int, *, b_std: float = 0.0, loss: str = "classification") -> Subject:
    subject = load_subject(f"random:{model_type}", loss=loss, settings=SIZES)
    subject = with_lora(subject, LoRA(rank=rank, b_std=b_std), seed=3)
    subject.module.double()
    return subject


def observe(subject: Subject, records: int, length: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The update, the token ids, and the first attention's input at every token ``[records length features]``."""
    ids = torch.randint(subject.anatomy.vocab_size, (records, length), generator=derive(1, "ids"))
    labels = torch.arange(records) % subject.classes if subject.loss.name == "classification" else ids
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0))
    path = subject.anatomy.blocks[0].attention_inputs[0].module
    return dict(update), ids, linear_inputs(subject, (path,), ids)[path].double()


def space_of(subject: Subject, update: dict[str, Tensor], **targets: int) -> Subspace | None:
    """What the adapters of the first attention tell of its input; ``targets`` picks one of them by number."""
    adapters = subject.anatomy.adapters_of(subject.anatomy.blocks[0].attention_inputs)
    chosen = [adapters[number] for number in targets.values()] or adapters
    shared = Shared(update=update, noise_std=lambda _: 0.0, summands=64)
    found = adapter_space(shared, chosen, Model(subject=subject).value)
    return None if found is None else found[0]


def farthest(space: Subspace, vectors: Tensor) -> float:
    """The residual of a vector in units of what float32 lets a member show."""
    rows = vectors.reshape(-1, space.features)
    return float((space.residual(rows) / space.expected(rows)).max())


@pytest.mark.parametrize("model_type", ("llama", "gpt2", "bert"))
def test_stacked_ranks_add_up_to_the_span_of_the_inputs(model_type: str) -> None:
    subject = adapted(model_type, 16, b_std=0.02)
    # 24 tokens: more than one rank of 16, and fewer than three. GPT-2 has one map, and 14 tokens that a loss reads.
    update, _, z = observe(subject, *((3, 8) if model_type != "gpt2" else (2, 8)))
    space = space_of(subject, update)
    assert space is not None and space.rank == space.inputs == z.shape[0] * z.shape[1]
    assert farthest(space, z) < 4.0
    other = torch.randn(20, 128, generator=derive(2), dtype=torch.float64)
    assert float(space.residual(other).min()) > 0.5
    if model_type != "gpt2":
        alone = space_of(subject, update, only=0)
        assert alone is not None and alone.rank == 16 and float(alone.residual(z[1:]).max()) > 0.1


@pytest.mark.parametrize(("model_type", "rank", "conditions"), (("llama", 8, 4), ("llama", 16, 20), ("bert", 16, 20)))
def test_at_step_zero_sketches_leave_linear_conditions(model_type: str, rank: int, conditions: int) -> None:
    """Six tokens: r − 6 conditions of each adapter that shows all of them. Queries of a causal model miss the first token; keys,
    whose error signals in one record sum to zero unless they are turned by position, show one direction less."""
    subject = adapted(model_type, rank, loss="causal-lm" if model_type == "llama" else "classification")
    update, _, z = observe(subject, 1, 7 if model_type == "llama" else 6)
    members = z[:, :6] if model_type == "llama" else z
    space = space_of(subject, update)
    assert space is not None and space.inputs == 6 and space.rest == conditions
    assert farthest(space, members) < 4.0
    other = torch.randn(2000, 128, generator=derive(2), dtype=torch.float64)
    shown = space.residual(other).square()
    assert math.isclose(float(shown.mean()), conditions / 128, rel_tol=0.1) and float(shown.min()) > 1e-6


def test_more_inputs_than_the_rank_leave_no_condition_at_step_zero() -> None:
    subject = adapted("llama", 8)
    update, _, _ = observe(subject, 2, 6)
    assert space_of(subject, update) is None
