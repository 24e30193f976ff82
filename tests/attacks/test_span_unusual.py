"""Attention that compresses its input, gates its result, brings a backward of its own or comes behind recurrent layers:
recovered like any other.
"""

from __future__ import annotations

import pytest
import torch

from gradleak.attacks.span import Span
from gradleak.core.attack import Clock, Reconstruction, Status
from gradleak.core.batch import Batch
from gradleak.core.errors import NotApplicableError
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject
from gradleak.theory.prediction.predict import Noise, predict

pytestmark = pytest.mark.oracle

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 500}
_LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
HYBRIDS = {
    "qwen3_5_text": SIZES | _LINEAR | {"num_hidden_layers": 4},
    "recurrent_gemma": SIZES | {"num_hidden_layers": 3},
    "jamba": SIZES | {"num_hidden_layers": 5, "num_experts": 2},
}


def attacked(model_type: str, seed: int) -> tuple[Batch, Reconstruction]:
    """Two records of 10 and 7 random tokens, and what ``span`` makes of their gradient."""
    subject = load_subject(f"random:{model_type}", loss="causal-lm", settings=HYBRIDS.get(model_type, SIZES), seed=seed)
    mask = torch.arange(10) < torch.tensor([[10], [7]])
    ids = torch.randint(3, 500, (2, 10), generator=derive(seed, "ids")).masked_fill(~mask, 0)
    batch = Batch(inputs=ids, mask=mask, labels=ids.masked_fill(~mask, -100))
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed, "update"))
    facts = {"subject": subject, "batch_size": 2, "seq_len": 10}
    observation = Observation(update=update, knowledge=Knowledge(facts=facts))
    return batch, Span()(observation, rng=derive(seed, "attack"), clock=Clock(60.0))


@pytest.mark.parametrize("seed", (0, 1))
@pytest.mark.parametrize("model_type", ("bloom", "deepseek_v3", "afmoe", *HYBRIDS))
def test_two_records_come_back_exactly(model_type: str, seed: int) -> None:
    batch, found = attacked(model_type, seed)
    # The attack is not given the client, and cannot certify.
    assert found.status is Status.CONVERGED
    shown = {tuple(record.tolist()) for record in batch.records()}
    assert {tuple(record.tolist()) for record in found.records} == shown


def test_a_first_attention_that_reads_other_tokens_is_not_searched_token_by_token() -> None:
    """HRM runs one stack on what another stack made of the whole text; only the embedding's rows tell tokens."""
    batch, found = attacked("hrm_text", 0)
    assert not found.ordered
    assert "depends on other tokens" in found.message
    assert set(found.records[0].tolist()) == {token for record in batch.records() for token in record[:-1].tolist()}


def test_the_maps_that_read_the_tokens_come_before_the_first_attention_of_a_hybrid() -> None:
    anatomy = load_subject("random:recurrent_gemma", loss="causal-lm", settings=HYBRIDS["recurrent_gemma"]).anatomy
    assert [block.path for block in anatomy.blocks] == ["model.layers.2"]
    names = ("linear_y", "linear_x")
    assert [each.module for each in anatomy.first_maps()] == [f"model.layers.0.temporal_block.{name}" for name in names]
    assert [each.module for each in anatomy.maps_behind()[0]] == ["model.layers.0.temporal_block.linear_out"]
    plain = load_subject("random:llama", loss="causal-lm", settings=SIZES).anatomy
    assert plain.first_maps() == plain.blocks[0].attention_inputs
    assert plain.maps_behind()[0] == (plain.blocks[0].attention_output,)


@pytest.mark.parametrize("model_type", ("deepseek_v3", "recurrent_gemma"))
def test_laws_of_plain_attention_are_not_claimed_for_other_kinds(model_type: str) -> None:
    subject = load_subject(f"random:{model_type}", loss="causal-lm", settings=HYBRIDS.get(model_type, SIZES))
    ids = torch.arange(5, 11).view(1, 6)
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=ids)
    with pytest.raises(NotApplicableError, match="compresses its input"):
        predict(subject, batch, training=LocalTraining(), noise=Noise(), origin="test")
