"""Left factors of adapters are sums of keys and of queries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.attacks.adapter_bag.factors import adapter_families
from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing.probe import linear_inputs
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


def outside(vectors: Tensor, of: Tensor) -> float:
    """Largest share of a row of ``vectors`` that lies outside the row space of ``of``."""
    basis = torch.linalg.svd(of.double(), full_matrices=False)
    kept = basis.Vh[1e-6 * basis.S[0] < basis.S]
    v = vectors.double()
    return float(((v - v @ kept.T @ kept).norm(dim=1) / v.norm(dim=1)).max())


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
