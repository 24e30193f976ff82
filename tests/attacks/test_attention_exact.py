"""The staged attack on an audited module: what theory says follows from the gradient, follows from a captured update."""

from __future__ import annotations

import pytest
import torch

from gradleak.attacks.attention_exact import AttentionExact
from gradleak.attacks.dlg import DLG
from gradleak.core.attack import Reconstruction, Status
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.stage import Stage
from gradleak.defenses.gaussian import Gaussian
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject
from gradleak.models.bare import BareAttention, bare_subject

pytestmark = pytest.mark.oracle

CLASSES = 3


def capture(
    tokens: int, width: int, heads: int, seed: int, *stages: Stage, records: int = 1
) -> tuple[Observation, Batch]:
    """One shared float32 update of a bare layer, and the batch behind it."""
    torch.manual_seed(seed)
    subject = bare_subject(BareAttention(heads=heads, targets=torch.randn(CLASSES, tokens, width)))
    batch = Batch(
        inputs=torch.randn(records, 1, tokens, width),
        mask=torch.ones(records, dtype=torch.bool),
        labels=torch.arange(records) % CLASSES,
    )
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    channel = Channel(trainer=trainer, stages=stages)
    facts = {
        "subject": subject,
        "trainer": trainer,
        "stages": stages,
        "batch_size": records,
        "labels": batch.labels,
        "mask": batch.mask,
    }
    update = channel.observe(batch, derive(seed, "channel"))
    return Observation(update=update, knowledge=Knowledge(facts=facts)), batch


def error(found: Reconstruction, batch: Batch) -> float:
    return float((found.records[0] - batch.inputs[0]).norm() / batch.inputs[0].norm())


def test_where_the_width_is_twice_the_tokens_the_record_comes_back() -> None:
    """d >= 2n: at least 95 % of the instances, here 24 instances of normal data, from updates in float32."""
    shapes = [(2, 8, 1), (4, 8, 1), (4, 16, 2), (4, 8, 2)]
    errors = []
    for tokens, width, heads in shapes:
        # Not the seeds on which the stopping value of the second stage was set.
        for seed in range(100, 106):
            observation, batch = capture(tokens, width, heads, seed)
            found = AttentionExact()(observation, rng=derive(seed, "attack"))
            errors.append(error(found, batch))
            # A certificate is never given to a wrong record.
            assert found.status is not Status.EXACT or errors[-1] < 1e-3
            assert (found.status is Status.EXACT) is (errors[-1] < 1e-3)
    assert sum(e < 1e-3 for e in errors) >= 0.95 * len(errors)


def test_below_twice_the_tokens_it_says_why_it_does_not_apply() -> None:
    found = AttentionExact()(capture(5, 8, 1, 0)[0], rng=derive(0, "attack"))
    assert found.status is Status.NOT_APPLICABLE and "Not identifiable" in found.message


@pytest.mark.parametrize("records", [2])
def test_it_does_not_apply_to_sums_over_records(records: int) -> None:
    found = AttentionExact()(capture(3, 8, 1, 0, records=records)[0], rng=derive(0, "attack"))
    assert found.status is Status.NOT_APPLICABLE and "one record" in found.message


def test_it_does_not_apply_to_models_with_an_unknown_error_signal() -> None:
    subject = load_subject(
        "random:vit",
        settings={
            "image_size": 8,
            "patch_size": 4,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
    )
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    batch = Batch(inputs=torch.rand(1, 3, 8, 8), mask=torch.ones(1, dtype=torch.bool), labels=torch.zeros(1).long())
    facts = {"subject": subject, "trainer": trainer, "batch_size": 1, "labels": batch.labels}
    update = trainer.update(batch, derive(0, "x"))
    found = AttentionExact()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(0, "attack"))
    assert found.status is Status.NOT_APPLICABLE and "squared loss" in found.message


def test_noise_leaves_no_certificate_and_a_useful_start() -> None:
    observation, batch = capture(4, 16, 1, 1, Gaussian(relative_std=1e-4))
    found = AttentionExact(restarts=4)(observation, rng=derive(0, "attack"))
    assert found.status is not Status.EXACT
    assert 1e-6 < error(found, batch) < 0.05


def test_other_attacks_run_on_the_bare_layer_too() -> None:
    observation, _ = capture(3, 8, 1, 2)
    found = DLG(iterations=3, restarts=1, screened=1)(observation, rng=derive(0, "attack"))
    assert found.status is not Status.NOT_APPLICABLE and found.records[0].shape == (1, 3, 8)
