"""The identification attack ranks the private record first where the update holds it, and near chance where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gradleak.attacks.identification import Identification
from gradleak.core.attack import Reconstruction
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.harness.request.catalogue import make_stages
from gradleak.harness.request.prepare import Request, prepare
from gradleak.harness.running.runner import run
from gradleak.harness.running.store import RunFolder
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.oracle

DECOYS = 24
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load_subject("random:vit", settings={**TINY, "image_size": 8, "patch_size": 4})


def identify(
    subject: Subject, chain: str, seed: int, *, size: int = 1, naive: bool = False
) -> tuple[Batch, Reconstruction]:
    pixels = torch.rand(size + DECOYS, *subject.pixel_shape, generator=derive(seed, "pixels"))
    labels = torch.arange(size) % 2
    batch = Batch(inputs=pixels[:size], mask=torch.ones(size, dtype=torch.bool), labels=labels)
    channel = Channel(trainer=ClientTrainer(subject=subject, training=LocalTraining()), stages=make_stages(chain))
    order = torch.randperm(len(pixels), generator=derive(seed, "order")).tolist()
    trainer = channel.deployed()
    facts = {"subject": trainer.subject, "trainer": trainer, "batch_size": size, "candidates": tuple(pixels[order])}
    facts |= {} if naive else {"stages": channel.stages}
    observation = Observation(update=channel.observe(batch, derive(seed, "channel")), knowledge=Knowledge(facts=facts))
    return batch, Identification()(observation, rng=derive(seed, "attack"))


def ranks(subject: Subject, chain: str, *, naive: bool = False, seeds: int = 5) -> list[int]:
    found = []
    for seed in range(seeds):
        batch, result = identify(subject, chain, seed, naive=naive)
        found.append(1 + next(i for i, record in enumerate(result.ranking) if torch.equal(record, batch.inputs[0])))
    return found


@pytest.mark.parametrize(
    "chain",
    [
        "none",
        "sign()",
        "clip(max_norm=0.01)",
        "prune(fraction=0.99)",
        "random_mask(fraction=0.99)",
        "low_rank(rank=1)",
        "qsgd(levels=4)",
        "ada_defense()",
        "dgc(fraction=0.99)",
        "soteria(fraction=0.8)",
        "censor()",
        "outpost()",
        "dpsgd(max_norm=1.0, noise_multiplier=0.001)",
        "fed_sdp(max_norm=1.0, noise_multiplier=0.001)",
        "grad_defense()",
        "grad_defense(std=100.0)",
        "frozen_embeddings()",
        "frozen_blocks(blocks=1)",
    ],
)
def test_heuristic_defenses_leave_the_record_first_among_many(subject: Subject, chain: str) -> None:
    """Five batches: by chance the private record is first in all of them with probability 25⁻⁵ ≈ 1e-7."""
    assert ranks(subject, chain) == [1] * 5


def test_noise_that_drowns_the_update_leaves_chance(subject: Subject) -> None:
    """Uniform ranks on 1..25: the mean of 20 is 13 ± 1.6, so within 4 deviations; ten thousand times the rms is no signal."""
    mean = sum(ranks(subject, "gaussian(relative_std=10000.0)", seeds=20)) / 20
    assert abs(mean - 13) < 4 * 1.62


def test_what_holds_only_rounding_weighs_nothing() -> None:
    """A key bias has a gradient of zero: what is released of it is rounding, which no replay repeats digit by digit.

    Sixteen equal records give the update of one, up to rounding.
    """
    subject = load_subject("random:bert", loss="classification", settings=TINY, seed=1)
    words = torch.randint(5, subject.anatomy.vocab_size, (12, 8), generator=derive(0, "words"))
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    batch = Batch(
        inputs=words[:1].repeat(16, 1), mask=torch.ones(16, 8, dtype=torch.bool), labels=torch.ones(16).long()
    )
    update = Channel(trainer=trainer).observe(batch, derive(0, "channel"))
    keys = [n for n, tensor in update.items() if 0 < float(tensor.norm()) < 1e-5 * update.norm()]
    assert any("key.bias" in name for name in keys)
    facts = {"subject": subject, "trainer": trainer, "batch_size": 1, "candidates": tuple(words), "labels": [1]}
    found = Identification()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(0, "attack"))
    assert torch.equal(found.ranking[0], words[0])
    assert found.statistics["value_of_the_last_chosen"] < 1e-4 * found.statistics["value_of_the_runner_up"]


def test_knowing_the_stage_is_what_identifies(subject: Subject) -> None:
    """CENSOR's release is orthogonal to the truth: who does not know it ranks at chance, who knows it is sure."""
    assert sum(ranks(subject, "censor(trials=1)", naive=True)) > 5 * 2
    assert ranks(subject, "censor(trials=1)") == [1] * 5


@pytest.mark.parametrize(
    "chain",
    [
        "none",
        "secure_aggregation(number=4)",
        "gaussian(relative_std=0.3)",
        "prune(fraction=0.9)",
        "clip(max_norm=0.01)",
    ],
)
def test_several_records_are_found_together(subject: Subject, chain: str) -> None:
    """Four of 28 with unknown labels, three batches: by chance one batch is right with probability 1/20,475."""
    for seed in range(3):
        batch, result = identify(subject, chain, seed, size=4)
        assert len(result.ranking) == DECOYS + 4
        assert all(any(torch.equal(record, truth) for truth in batch.inputs) for record in result.records)


def test_an_audit_ranks_in_a_closed_world_and_flags_the_oracle(tmp_path: Path) -> None:
    """The rank in the record is the attack's own; the fact is marked as one that no receiver has."""
    request = Request(
        model="random:bert",
        attacks="identification",
        defenses=("sign()",),
        threat="closed_world",
        max_length=8,
        settings={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    prepared = prepare(request)
    with RunFolder(tmp_path / "run", prepared.plan) as store:
        run(prepared.plan, prepared.subject, prepared.source, store)
        records = store.records
    assert len(records) == 2
    for record in records:
        assert record.scores["identification_rank"]["value"] == 1.0
        assert record.scores["identification_rank"]["chance"] > 20
        assert "ORACLE_KNOWLEDGE" in record.flags and "NON_ADAPTIVE" not in record.flags
