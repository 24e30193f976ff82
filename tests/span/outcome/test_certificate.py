"""The certificate: what it costs where attention alone is shared."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from gradleak.core.attack import Clock
from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.harness.request.shares import parse_share
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.span.outcome.certificate import Certificate, certify

pytestmark = pytest.mark.oracle

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}


@pytest.fixture(scope="module", params=[2, 5])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    yield load_subject("random:gpt2", classes=request.param, settings=SIZES)


def _batch(subject: Subject, records: int) -> Batch:
    rng = derive(records, "label-fit")
    ids = torch.randint(3, subject.anatomy.vocab_size, (records, 7), generator=rng)
    labels = torch.randint(subject.classes, (records,), generator=rng)
    return Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)


def _attention_of(update: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in update.items() if ".attn." in name}


def test_the_certificate_of_attention_alone_costs_two_updates(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, batch = ClientTrainer(subject=subject, training=LocalTraining()), _batch(subject, 8)
    update = _attention_of(dict(trainer.update(batch, derive(0))))
    seen: list[int] = []
    plain = ClientTrainer.update
    monkeypatch.setattr(ClientTrainer, "update", lambda self, b, rng: (seen.append(b.size), plain(self, b, rng))[1])
    found = certify(
        update,
        trainer,
        list(batch.records()),
        labels=None,
        batch_size=8,
        seq_len=7,
        rng=derive(1),
        clock=Clock(),
    )
    assert found is not None and found.exact
    assert found.labels == tuple(batch.labels.tolist())
    # One gradient of each record under each label, and the whole batch once.
    assert sum(seen) == 8 * subject.classes + 8


def _released(kind: str, share: str) -> tuple[ClientTrainer, Batch, dict[str, torch.Tensor]]:
    """A trainer, a batch and what it releases, of a model with one block."""
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    subject = load_subject(f"random:{kind}", classes=2, settings=sizes)
    trainer, batch = ClientTrainer(subject=subject, training=parse_share(share)), _batch(subject, 3)
    return trainer, batch, dict(trainer.update(batch, derive(0)))


def _certified(update: dict[str, torch.Tensor], trainer: ClientTrainer, batch: Batch) -> Certificate:
    certificate = certify(
        update,
        trainer,
        list(batch.records()),
        labels=batch.labels.tolist(),
        batch_size=batch.size,
        seq_len=batch.inputs.shape[1],
        rng=derive(1),
        clock=Clock(),
    )
    assert certificate is not None
    return certificate


@pytest.mark.parametrize("share", ["gradient", "gradient(dtype=bf16)"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_records_in_another_order_are_exact(kind: str, share: str) -> None:
    trainer, batch, update = _released(kind, share)
    order = torch.tensor([2, 0, 1])
    turned = Batch(inputs=batch.inputs[order], mask=batch.mask[order], labels=batch.labels[order])
    certificate = _certified(update, trainer, turned)
    assert certificate.exact and certificate.error <= certificate.floor


@pytest.mark.parametrize(("share", "step"), [("gradient", 2.0**-23), ("gradient(dtype=bf16)", 2.0**-7)])
def test_the_floor_is_what_rounding_makes_of_32_units_in_the_last_place(share: str, step: float) -> None:
    """A number that is off by 32 units in the last place of float32, rounded to the format: the floor is that error.

    Simulated on 2^20 numbers of every significand; the law sqrt(e · step) has a worst case for each bit, so the
    simulated error lies below it, by less than a factor of three.
    """
    trainer, batch, update = _released("gpt2", share)
    floor = _certified(update, trainer, batch).floor
    exact = torch.exp2(torch.rand(2**20, generator=derive(0, "significands"), dtype=torch.float64))
    off = exact * (
        1 + 32 * 2.0**-23 * torch.sign(torch.randn(2**20, generator=derive(1, "signs"), dtype=torch.float64))
    )
    short = torch.float64 if step < 1e-6 else torch.bfloat16
    error = (off.to(short).double() - exact.to(short).double()).norm() / exact.norm()
    assert floor / 3 < float(error) <= 1.001 * floor


@pytest.mark.parametrize(("floors", "exact"), [(0.5, True), (2.0, False)])
def test_an_update_that_differs_by_more_than_the_floor_is_not_exact(floors: float, exact: bool) -> None:
    trainer, batch, update = _released("gpt2", "gradient")
    floor = _certified(update, trainer, batch).floor
    size = math.sqrt(sum(float(t.double().square().sum()) for t in update.values()))
    name = max(update, key=lambda n: update[n].numel())
    direction = torch.randn(update[name].shape, generator=derive(5, "near miss"))
    update[name] = update[name] + direction * (floors * floor * size / float(direction.norm()))
    certificate = _certified(update, trainer, batch)
    assert certificate.error == pytest.approx(floors * floor, rel=0.1)
    assert certificate.exact is exact
    assert certificate.per_tensor[name] > 0.9 * certificate.error


def test_one_wrong_token_is_far_above_the_floor() -> None:
    trainer, batch, update = _released("gpt2", "gradient")
    inputs = batch.inputs.clone()
    inputs[0, 3] = 3 if int(inputs[0, 3]) != 3 else 4
    wrong = _certified(update, trainer, Batch(inputs=inputs, mask=batch.mask, labels=batch.labels))
    assert not wrong.exact and wrong.error > 1e3 * wrong.floor


def test_what_cannot_be_recomputed_has_no_certificate() -> None:
    trainer, batch, update = _released("gpt2", "gradient")
    records = list(batch.records())
    given = {"labels": None, "batch_size": 3, "seq_len": 7, "rng": derive(1), "clock": Clock()}
    assert certify(update, trainer, records[:2], **given) is None, "another number of records"
    assert certify(update, trainer, records, starts=[0, 1, 0], **given) is None, "a record that would not fit"
    masked = load_subject("random:bert", loss="masked-lm", settings=SIZES)
    client = ClientTrainer(subject=masked, training=LocalTraining())
    assert certify(update, client, records, **given) is None, "targets that the records do not tell"
