"""The span attack on tiny random models of every architecture: right where it claims, silent where it cannot see."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.attack import Clock, Status
from gradleak.core.batch import IGNORED, Batch
from gradleak.core.rng import derive
from gradleak.defenses.gaussian import Gaussian
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing.first_input import read_first_input
from gradleak.mechanics.probing.heads import read_heads
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.span.outcome.certificate import Certificate, certify
from tests.support.span import CASES, EXTRA, VOCAB, as_set, attack, make_batch, make_subject

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", CASES)
@pytest.mark.parametrize("kind", EXTRA)
def test_recovers_every_record_and_certifies_it(kind: str, size: int, seed: int) -> None:
    subject = make_subject(kind, seed=seed)
    batch = make_batch(subject, CASES[size], seed=seed)
    found = attack(subject, batch, seed=seed)
    assert as_set(found.records) == as_set(batch.records())
    assert found.status is Status.EXACT
    assert found.ordered


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_survives_noise_of_one_in_ten_thousand(kind: str, seed: int) -> None:
    subject = make_subject(kind, seed=seed)
    batch = make_batch(subject, CASES[2], seed=seed)
    found = attack(subject, batch, stages=(Gaussian(relative_std=1e-4),), seed=seed)
    assert as_set(found.records) == as_set(batch.records())
    assert found.status is Status.CONVERGED
    assert found.adapted == ("gaussian",)


@pytest.mark.parametrize("seed", range(3))
def test_survives_a_bf16_update(seed: int) -> None:
    subject = make_subject("llama", seed=seed)
    batch = make_batch(subject, CASES[2], seed=seed)
    found = attack(subject, batch, training=LocalTraining(dtype="bf16"), seed=seed)
    assert as_set(found.records) == as_set(batch.records())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_reads_a_delta_of_several_sgd_steps(kind: str) -> None:
    subject = make_subject(kind)
    batch = make_batch(subject, CASES[2], seed=0)
    found = attack(subject, batch, training=LocalTraining(share="delta", steps=5, lr=1e-2))
    assert as_set(found.records) == as_set(batch.records())


def test_needs_no_more_than_the_model() -> None:
    subject = make_subject("gpt2")
    batch = make_batch(subject, CASES[2], seed=0)
    found = attack(subject, batch, without=("trainer", "stages", "batch_size", "seq_len"))
    assert as_set(found.records) == as_set(batch.records())
    assert found.status is Status.CONVERGED


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_last_token_of_a_language_model_is_read_from_the_heads_gradient(kind: str) -> None:
    subject = make_subject(kind, loss="causal-lm")
    batch = make_batch(subject, CASES[2], seed=0)
    found = attack(subject, batch)
    assert as_set(found.records) == as_set(batch.records())
    assert found.status is Status.EXACT


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_without_the_heads_gradient_the_last_token_is_left_out_and_nothing_is_claimed(kind: str) -> None:
    subject = make_subject(kind, loss="causal-lm")
    batch = make_batch(subject, CASES[2], seed=0)
    head = subject.anatomy.head
    assert head is not None
    found = attack(subject, batch, only=[name for name in subject.parameters() if name != head.weight])
    assert as_set(found.records) == {record[:-1] for record in as_set(batch.records())}
    assert found.status is Status.UNDECIDED
    assert found.confidence == ()
    assert "last token" in found.message


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_copies_and_prefixes_of_records_are_counted(kind: str) -> None:
    """Of four records one stands twice and one is the beginning of another; the gradient of the loss of every token counts them."""
    subject = make_subject(kind, loss="causal-lm")
    batch = make_batch(subject, [9, 9, 6, 8], seed=0)
    ids, mask = batch.inputs.clone(), batch.mask
    ids[1] = ids[0]
    ids[2, :6] = ids[3, :6]
    batch = Batch(inputs=ids, mask=mask, labels=ids.masked_fill(~mask, IGNORED))
    found = attack(subject, batch)
    assert sorted(map(tuple, map(torch.Tensor.tolist, found.records))) == sorted(
        map(tuple, map(torch.Tensor.tolist, batch.records()))
    )
    assert found.status is Status.EXACT


def test_a_prefix_of_another_record_is_counted() -> None:
    subject = make_subject("gpt2")
    batch = make_batch(subject, [8, 8], seed=0)
    ids = batch.inputs.clone()
    ids[1, :5], ids[1, 5:] = ids[0, :5], 0
    mask = batch.mask.clone()
    mask[1, 5:] = False
    batch = Batch(inputs=ids, mask=mask, labels=batch.labels)
    found = attack(subject, batch)
    assert as_set(found.records) == as_set(batch.records())
    assert found.status is Status.EXACT
    assert "least squares" in found.message


def test_a_repeated_first_token_is_no_record_of_a_rotary_model() -> None:
    subject = make_subject("llama")
    batch = make_batch(subject, [8], seed=0)
    found = attack(subject, batch, without=("batch_size",))
    assert as_set(found.records) == as_set(batch.records())
    assert found.statistics["accepted"] > 1  # The repetition passes every test and is dropped for explaining nothing.


def test_queries_alone_leave_the_first_position_open() -> None:
    subject = make_subject("opt")
    block = subject.anatomy.blocks[0]
    query = next(m.weight for m in block.attention_inputs if m.weight.endswith("q_proj.weight"))
    batch = make_batch(subject, [8], seed=0)
    found = attack(subject, batch, only=[query, block.attention_output.weight, block.mlp_inputs[0].weight])
    assert as_set(found.records) == as_set(batch.records())


def test_names_the_tensors_that_are_missing() -> None:
    subject = make_subject("gpt2")
    assert subject.anatomy.token_embedding is not None
    found = attack(subject, make_batch(subject, [8], seed=0), only=[subject.anatomy.token_embedding])
    assert found.status is Status.NOT_APPLICABLE
    assert subject.anatomy.blocks[0].attention_inputs[0].weight in found.message


def test_says_that_several_adaptive_steps_destroy_the_structure() -> None:
    subject = make_subject("gpt2")
    training = LocalTraining(share="delta", optimizer="adamw", steps=2)
    found = attack(subject, make_batch(subject, [8], seed=0), training=training)
    assert found.status is Status.NOT_APPLICABLE
    assert "AdamW" in found.message


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_pure_noise_yields_nothing(kind: str, seed: int) -> None:
    subject = make_subject(kind, seed=seed)
    found = attack(subject, make_batch(subject, [8], seed=seed), stages=(Gaussian(relative_std=1e3),), seed=seed)
    assert found.records == ()
    assert found.status in {Status.NOTHING_FOUND, Status.NOT_APPLICABLE}


def test_the_certificate_refuses_a_wrong_token() -> None:
    subject = make_subject("bert")
    batch = make_batch(subject, [8], seed=0)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    update = trainer.update(batch, derive(0))

    def certificate(record: torch.Tensor) -> Certificate | None:
        return certify(update, trainer, [record], labels=None, batch_size=1, seq_len=8, rng=derive(0), clock=Clock())

    right = certificate(batch.inputs[0])
    assert right is not None and right.exact
    assert right.labels == tuple(batch.labels.tolist())
    wrong = batch.inputs[0].clone()
    wrong[3] = (wrong[3] + 1) % VOCAB
    spoiled = certificate(wrong)
    assert spoiled is not None and not spoiled.exact
    assert spoiled.error > 1e-3


@pytest.mark.parametrize("kind", EXTRA)
def test_the_law_of_the_first_input_is_the_models_own(kind: str) -> None:
    subject = make_subject(kind)
    path = subject.anatomy.blocks[0].attention_inputs[0].module
    law = read_first_input(subject, path, positions=6)
    assert law is not None
    ids = torch.randint(3, 400, (4, 6), generator=torch.Generator().manual_seed(0))
    x = law.norm.center(law.before_norm(ids))
    sigma = x.square().mean(-1, keepdim=True).sqrt() if law.norm.normalized else torch.ones(1)
    body = law.norm.gain * x / sigma
    z = linear_inputs(subject, (path,), ids)[path] - law.norm.offset
    cosine = torch.nn.functional.cosine_similarity(body, z, dim=-1)
    assert float(cosine.min()) > 1 - 1e-6


@pytest.mark.parametrize("kind", [kind for kind in EXTRA if "bert" not in kind])
def test_kept_queries_and_keys_give_what_the_model_attends_to(kind: str) -> None:
    subject = make_subject(kind)
    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(3, VOCAB, (5, 8), generator=rng)
    heads = read_heads(subject, rows)
    assert heads is not None
    prefixes = torch.randint(5, (3, 6), generator=rng)
    made = heads.extend(prefixes, torch.arange(5)).flatten(0, 1)
    sequences = torch.stack(
        [torch.cat((rows[prefix, torch.arange(6)], rows[r, 6:7])) for prefix in prefixes for r in range(5)]
    )
    path = subject.anatomy.blocks[0].attention_output.module
    seen = linear_inputs(subject, (path,), sequences)[path][:, -1]
    assert torch.allclose(made, seen, rtol=1e-4, atol=1e-5 * float(seen.abs().max()))
    assert subject.module.config._attn_implementation == "eager"
