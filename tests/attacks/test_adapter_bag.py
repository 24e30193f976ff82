"""What adapters of rank r tell about many more than r tokens, on models small enough for the fast suite and at full width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradleak.attacks.adapter_bag import AdapterBag
from gradleak.core.attack import Reconstruction, Status
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import LoRA, load_subject, with_lora

pytestmark = pytest.mark.oracle

FULL = {"num_hidden_layers": 12}
SMALL = {"hidden_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 4000}


def recover(
    settings: dict[str, int],
    *,
    records: int,
    length: int,
    rank: int,
    model: str = "gpt2",
    b_std: float = 0.0,
    shuffled: bool = False,
) -> tuple[Reconstruction, Tensor]:
    """The attack on one gradient of a random decoder, at step 0 unless ``b_std`` says otherwise, and the tokens of the batch that are not a record's last."""
    subject = load_subject(f"random:{model}", loss="causal-lm", settings=settings)
    subject = with_lora(subject, LoRA(rank=rank, b_std=b_std), seed=0)
    ids = torch.randint(subject.anatomy.vocab_size, (records, length), generator=derive(0, "ids"))
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=ids)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0))
    if shuffled:
        update = update.map(
            lambda name, t: t.flatten()[torch.randperm(t.numel(), generator=derive(0, name))].view_as(t)
        )
    facts = {"subject": subject, "batch_size": records, "seq_len": length}
    found = AdapterBag()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(0, "attack"))
    return found, ids[:, :-1].unique()


def hits(found: Reconstruction, true: Tensor) -> float:
    return float(torch.isin(true, found.records[0]).double().mean()) if found.records else 0.0


def test_more_tokens_than_the_rank_are_recovered_at_step_zero() -> None:
    found, true = recover(SMALL, records=4, length=8, rank=16)
    assert len(true) > 16
    assert found.status is Status.CONVERGED and not found.ordered
    assert hits(found, true) > 0.8


@pytest.mark.parametrize(("model", "b_std"), [("llama", 0.0), ("llama", 0.02)])
def test_turning_keys_and_trained_adapters_tell_as_much(model: str, b_std: float) -> None:
    """Rotary positions blur the fast directions of the keys; an adapter that has moved shares sums of inputs as well."""
    found, true = recover(SMALL, records=4, length=8, rank=16, model=model, b_std=b_std)
    assert hits(found, true) > 0.8
    assert float(torch.isin(found.records[0], true).double().mean()) > 0.8


def test_the_same_numbers_in_another_order_tell_nothing() -> None:
    """The control: an update with the same entries, shuffled within each tensor; chance is 32 of 4,000 tokens."""
    found, true = recover(SMALL, records=4, length=8, rank=16, shuffled=True)
    assert hits(found, true) < 0.2


def test_an_update_without_attention_gradients_is_refused() -> None:
    subject = load_subject("random:gpt2", loss="causal-lm", settings=SMALL)
    update = Update({"transformer.ln_f.weight": torch.ones(256)})
    facts = {"subject": subject, "batch_size": 1, "seq_len": 8}
    found = AdapterBag()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(0))
    assert found.status is Status.NOT_APPLICABLE and "attention projections" in found.message


@pytest.mark.slow
def test_rank_sixteen_gives_away_most_of_128_tokens_at_full_width_and_depth() -> None:
    """GPT-2-small's shape, 8 records of 16 tokens, one gradient at step 0: nearly all tokens that carry a loss."""
    found, true = recover(FULL, records=8, length=16, rank=16)
    assert hits(found, true) > 0.9
    assert float(torch.isin(found.records[0], true).double().mean()) > 0.9
