"""Micro-batches, mini-batches, epochs and momentum against hand-written torch loops, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradleak.attacks.token_support import TokenSupport
from gradleak.core.attack import Clock, Status
from gradleak.core.batch import IGNORED, Batch
from gradleak.core.errors import NotApplicableError, SpecError
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.defenses.dpsgd import DPSGD
from gradleak.harness.request.prepare import Request, read_methods
from gradleak.harness.request.shares import parse_share, share_spec
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.span.outcome.certificate import certify

pytestmark = pytest.mark.oracle

LENGTHS = (7, 3, 5, 2, 6)


def subject_of(kind: str = "gpt2", loss: str = "causal-lm") -> Subject:
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    subject = load_subject(f"random:{kind}", loss=loss, settings=settings, seed=0)
    subject.module.double()
    return subject


def batch_of(loss: str = "causal-lm") -> Batch:
    ids = torch.randint(5, 250, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    labels = ids.masked_fill(~mask, IGNORED) if loss == "causal-lm" else torch.arange(len(LENGTHS)) % 2
    return Batch(inputs=ids, mask=mask, labels=labels)


def mean_loss(module: nn.Module, batch: Batch, places: list[int], loss: str) -> Tensor:
    logits = module(input_ids=batch.inputs[places], attention_mask=batch.mask[places].long()).logits
    labels = batch.labels[places]
    if loss == "causal-lm":
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return nn.functional.cross_entropy(logits, labels)


def chunks(places: list[int], size: int | None) -> Iterator[list[int]]:
    step = size or len(places)
    yield from (places[at : at + step] for at in range(0, len(places), step))


def by_hand(subject: Subject, batch: Batch, t: LocalTraining, seed: int) -> dict[str, Tensor]:
    """The usual training loop: ``(loss / number of micro-batches).backward()``, then ``optimizer.step()``."""
    module = copy.deepcopy(subject.module)
    parameters = dict(module.named_parameters())
    stepper: torch.optim.Optimizer = torch.optim.SGD(parameters.values(), lr=t.lr, momentum=t.momentum)
    if t.optimizer == "adamw":
        stepper = torch.optim.AdamW(parameters.values(), lr=t.lr, weight_decay=t.weight_decay)
    rng, passes = torch.Generator().manual_seed(seed), t.steps if t.mini_batch is None else t.epochs
    for _ in range(passes):
        order = list(range(batch.size))
        if t.mini_batch is not None:
            order = torch.randperm(batch.size, generator=rng).tolist()
        for places in chunks(order, t.mini_batch):
            stepper.zero_grad()
            parts = list(chunks(places, t.micro_batch))
            for part in parts:
                (mean_loss(module, batch, part, subject.loss.name) / len(parts)).backward()
            if t.share == "gradient":
                return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in parameters.items()}
            stepper.step()
    return {n: (p - subject.module.get_parameter(n)).detach() for n, p in parameters.items()}


def distance(left: Any, right: dict[str, Tensor]) -> float:
    off = sum(float((left[name].detach().double() - right[name]).square().sum()) for name in right)
    return (off / sum(float(tensor.square().sum()) for tensor in right.values())) ** 0.5


SHARES = (
    "gradient(micro_batch=2)",
    "gradient(micro_batch=1)",
    "delta(steps=3, lr=0.05, momentum=0.9)",
    "delta(steps=2, lr=0.05, micro_batch=2)",
    "delta(epochs=3, mini_batch=2, lr=0.05)",
    "delta(epochs=3, mini_batch=2, lr=0.05, momentum=0.9)",
    "delta(epochs=2, mini_batch=3, micro_batch=2, lr=0.05)",
    "delta(epochs=2, mini_batch=9, lr=0.05)",
)


@pytest.mark.parametrize("loss", ["causal-lm", "classification"])
@pytest.mark.parametrize("share", SHARES)
def test_equals_a_hand_written_loop(share: str, loss: str) -> None:
    subject, training = subject_of("gpt2" if loss == "causal-lm" else "bert", loss), parse_share(share)
    batch = batch_of(loss)
    made = ClientTrainer(subject=subject, training=training).update(batch, torch.Generator().manual_seed(3))
    assert distance(made, by_hand(subject, batch, training, seed=3)) < 1e-6


def test_adamw_over_mini_batches_equals_torchs_where_gradients_are_not_rounding_noise() -> None:
    subject, batch = subject_of(), batch_of()
    training = parse_share("delta(epochs=2, mini_batch=2, lr=0.01, optimizer=adamw, weight_decay=0.1)")
    made = ClientTrainer(subject=subject, training=training).update(batch, torch.Generator().manual_seed(3))
    wanted = by_hand(subject, batch, training, seed=3)
    biases = {name for name in wanted if name.endswith("attn.c_attn.bias")}  # the key bias has no gradient
    assert distance(made, {name: tensor for name, tensor in wanted.items() if name not in biases}) < 1e-5


def test_accumulation_is_another_gradient_only_where_the_loss_counts_tokens() -> None:
    whole, parts = LocalTraining(), LocalTraining(micro_batch=1)
    for kind, loss, least, most in (("gpt2", "causal-lm", 0.05, 2.0), ("bert", "classification", 0.0, 1e-6)):
        subject, batch = subject_of(kind, loss), batch_of(loss)
        one, other = (
            ClientTrainer(subject=subject, training=t).update(batch, torch.Generator()) for t in (whole, parts)
        )
        assert least <= distance(other, {name: tensor.double() for name, tensor in one.items()}) < most


def test_the_order_is_the_clients_own() -> None:
    trainer = ClientTrainer(subject=subject_of(), training=parse_share("delta(mini_batch=2, lr=0.5)"))
    one, same, other = (trainer.update(batch_of(), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    plain = {name: tensor.double() for name, tensor in one.items()}
    assert distance(same, plain) == 0.0
    assert distance(other, plain) > 1e-4


def test_replay_follows_accumulation_and_momentum() -> None:
    subject, batch = subject_of(), batch_of()
    for share in ("gradient(micro_batch=2)", "delta(steps=3, lr=0.05, momentum=0.9, micro_batch=2)"):
        trainer = ClientTrainer(subject=subject, training=parse_share(share))
        data = trainer.prepare(batch)
        made = trainer.replay(data.inputs, data.targets, data.mask)
        wanted = {name: tensor.double() for name, tensor in trainer.update(batch, torch.Generator()).items()}
        assert distance(made, wanted) < 1e-6


def test_replay_refuses_what_only_the_client_knows() -> None:
    trainer = ClientTrainer(subject=subject_of(), training=parse_share("delta(mini_batch=2)"))
    data = trainer.prepare(batch_of())
    with pytest.raises(NotApplicableError, match="order of its mini-batches"):
        trainer.replay(data.inputs, data.targets, data.mask)


def test_no_certificate_where_the_order_of_the_records_matters() -> None:
    trainer, batch = ClientTrainer(subject=subject_of(), training=LocalTraining(micro_batch=2)), batch_of()
    update = trainer.update(batch, torch.Generator())
    settings = {"batch_size": batch.size, "seq_len": 7, "labels": None, "clock": Clock(), "rng": torch.Generator()}
    assert certify(update, trainer, batch.records(), **settings) is None


def test_an_audit_refuses_them_before_it_loads_a_model() -> None:
    request = Request(share="delta(mini_batch=2)", defenses=("dpsgd(max_norm=1.0, noise_multiplier=1.0)",))
    with pytest.raises(SpecError, match="Leave micro_batch and mini_batch out"):
        read_methods(request)


@pytest.mark.parametrize("share", ["gradient(micro_batch=2)", "delta(mini_batch=2)"])
def test_training_stages_refuse_parts_of_a_batch(share: str) -> None:
    trainer = ClientTrainer(subject=subject_of(), training=parse_share(share))
    with pytest.raises(SpecError, match="DPSGD replaces the aggregation of full-batch steps"):
        trainer.train(trainer.prepare(batch_of()), torch.Generator(), stage=DPSGD(max_norm=1.0, noise_multiplier=1.0))


def test_token_support_subtracts_the_decay_of_every_mini_batch_step() -> None:
    subject, batch = subject_of("bert", "classification"), batch_of("classification")
    trainer = ClientTrainer(subject=subject, training=parse_share("delta(epochs=3, mini_batch=2, optimizer=adamw)"))
    assert trainer.training.local_steps(batch.size) == 9
    name = subject.anatomy.token_embedding
    assert name is not None
    with pytest.raises(NotApplicableError, match="batch size is not known"):
        trainer.idle(name)
    facts = {"subject": subject, "trainer": trainer, "batch_size": batch.size, "seq_len": 7}
    update = trainer.update(batch, torch.Generator().manual_seed(0))
    found = TokenSupport()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=torch.Generator())
    assert found.status is Status.CONVERGED
    assert set(found.records[0].tolist()) == set(batch.inputs[batch.mask].tolist())


@pytest.mark.parametrize("share", SHARES)
def test_specs_round_trip(share: str) -> None:
    training = parse_share(share)
    assert parse_share(str(share_spec(training))) == training


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ("gradient(micro_batch=0)", "micro_batch=0 must be at least 1"),
        ("delta(mini_batch=-1)", "mini_batch=-1 must be at least 1"),
        ("delta(mini_batch=2, epochs=0)", "epochs=0 must be at least 1"),
        ("gradient(mini_batch=2)", "micro_batch=2 for gradient accumulation"),
        ("delta(epochs=5)", r"write delta\(steps=5\)"),
        ("delta(mini_batch=2, steps=5)", "counts epochs, not steps"),
        ("delta(mini_batch=2, micro_batch=3)", "larger than the step's mini_batch=2"),
        ("delta(momentum=1.0)", r"must lie in \[0, 1\)"),
        ("delta(momentum=-0.1)", r"must lie in \[0, 1\)"),
        ("delta(momentum=0.9, optimizer=adamw)", "belongs to SGD"),
        ("gradient(momentum=0.9)", "belongs to SGD"),
    ],
)
def test_bad_values_say_what_to_do(share: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_share(share)
