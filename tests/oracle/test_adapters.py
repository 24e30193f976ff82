"""What adapter gradients hold, against the linear algebra written out: spans of inputs, of A x, of keys and of queries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.mechanics.adapters import adapter_families, adapter_spaces
from gradleak.mechanics.probe import linear_inputs
from gradleak.mechanics.training import ClientTrainer, LocalTraining
from gradleak.models import LoRA, Subject, load_subject, with_lora

SIZES = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 300}


def adapted(model_type: str, rank: int, *, b_std: float = 0.0, loss: str = "classification") -> Subject:
    subject = load_subject(f"random:{model_type}", loss=loss, settings=SIZES)
    subject = with_lora(subject, LoRA(rank=rank, b_std=b_std), seed=3)
    subject.module.double()
    return subject


def observe(subject: Subject, records: int, length: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The update, the token ids, and the first attention's input at every token ``[records length features]``."""
    ids = torch.randint(subject.anatomy.vocab_size, (records, length), generator=derive(1, "ids"))
    labels = torch.arange(records) % subject.classes if subject.loss == "classification" else ids
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0))
    path = subject.anatomy.blocks[0].attention_inputs[0].module
    return dict(update), ids, linear_inputs(subject, (path,), ids)[path].double()


def outside(vectors: Tensor, of: Tensor) -> float:
    """Largest share of a row of ``vectors`` that lies outside the row space of ``of``."""
    basis = torch.linalg.svd(of.double(), full_matrices=False)
    kept = basis.Vh[1e-6 * basis.S[0] < basis.S]
    v = vectors.double()
    return float(((v - v @ kept.T @ kept).norm(dim=1) / v.norm(dim=1)).max())


def rounding(of: Tensor) -> float:
    """How far float32 can turn the weakest direction of ``of``: machine epsilon times the ratio of singular values."""
    values = torch.linalg.svdvals(of.double())
    kept = values[values > 1e-6 * values[0]]
    return 8 * torch.finfo(torch.float32).eps * float(kept[0] / kept[-1])


@pytest.mark.parametrize("model_type", ("llama", "gpt2", "bert"))
def test_stacked_ranks_add_up_to_the_span_of_the_inputs(model_type: str) -> None:
    subject = adapted(model_type, 16, b_std=0.02)
    records, length = (3, 8) if model_type != "gpt2" else (2, 8)
    update, _, z = observe(subject, records, length)
    maps = subject.anatomy.blocks[0].attention_inputs
    space = adapter_spaces(update, subject.anatomy, maps, subject.parameters())[0]
    stacked = torch.cat(space.gradients, dim=1)
    assert space.transform is None and stacked.shape == (128, 16 * len(maps))
    tokens = z.reshape(-1, 128)
    assert outside(stacked.T, tokens) < 1e-6
    # 24 tokens, more than one rank of 16 and fewer than three: only the stack holds them all.
    assert outside(tokens, stacked.T) < rounding(stacked) < 0.1
    if len(maps) == 3:
        assert outside(tokens, space.gradients[0].T) > 0.3


@pytest.mark.parametrize("rank", (8, 16, 64))
def test_at_step_zero_the_up_gradient_spans_what_a_makes_of_the_inputs(rank: int) -> None:
    subject = adapted("llama", rank)
    update, _, z = observe(subject, 1, 6)
    maps = subject.anatomy.blocks[0].attention_inputs
    spaces = adapter_spaces(update, subject.anatomy, maps, subject.parameters())
    assert len(spaces) == 3 and all(space.transform is not None for space in spaces)
    value = spaces[2]
    assert value.transform is not None and value.transform.shape == (rank, 128)
    made = z.reshape(-1, 128) @ value.transform.T.double()
    assert outside(value.gradients[0].T, made) < 1e-6
    assert outside(made, value.gradients[0].T) < rounding(value.gradients[0]) < 0.1
    other = torch.randn(20, 128, generator=derive(2), dtype=torch.float64) @ value.transform.T.double()
    assert outside(other, value.gradients[0].T) > 0.3


@pytest.mark.parametrize(("model_type", "rank"), (("gpt2", 8), ("gpt2", 64), ("opt", 16), ("bert", 16)))
def test_left_factors_are_sums_of_keys_and_of_queries(model_type: str, rank: int) -> None:
    subject = adapted(model_type, rank)
    update, _, z = observe(subject, 2, 6)
    queries, keys = adapter_families(update, subject.anatomy, subject.parameters())
    assert queries.centered and not keys.centered
    for h in range(2):
        features = torch.einsum("rf,btf->btr", queries.weights[h].double(), z)
        differences = (features - features.mean(dim=1, keepdim=True)).flatten(0, 1)
        assert outside(queries.sums[h].double().T, differences) < 1e-6
        made = (torch.einsum("rf,btf->btr", keys.weights[h].double(), z) + keys.offsets[h].double()).flatten(0, 1)
        assert outside(keys.sums[h].double().T, made) < 1e-6
        # And not of the other kind.
        assert outside(queries.sums[h].double().T, made) > 0.1


def test_grouped_queries_share_their_keys() -> None:
    subject = load_subject("random:llama", settings={**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2})
    subject = with_lora(subject, LoRA(rank=4), seed=0)
    update, _, _ = observe(subject, 2, 6)
    queries, keys = adapter_families(update, subject.anatomy, subject.parameters())
    assert queries.weights.shape == (4, 32, 128) and queries.sums.shape == (4, 32, 4)
    assert torch.equal(queries.weights[0], queries.weights[1]) and not torch.equal(
        queries.weights[1], queries.weights[2]
    )
    assert keys.weights.shape == (4, 32, 128) and torch.equal(keys.sums[2], keys.sums[3])


def test_at_step_zero_down_gradients_are_zero_and_tell_nothing() -> None:
    subject = adapted("gpt2", 8)
    update, _, _ = observe(subject, 1, 4)
    assert not any(bool(update[a.down.weight].any()) for a in subject.anatomy.adapters)
    kinds = [family.weights.shape for family in adapter_families(update, subject.anatomy, subject.parameters())]
    assert kinds == [(2, 64, 128), (2, 64, 128)]
    warm = adapted("gpt2", 8, b_std=0.02)
    update, _, _ = observe(warm, 1, 4)
    assert len(adapter_families(update, warm.anatomy, warm.parameters())) == 3
