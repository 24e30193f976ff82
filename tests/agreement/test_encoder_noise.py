"""Whole sentences of a real encoder from updates that noise or a short format blurs: nearly all of them, and no wrong one."""

from __future__ import annotations

import pytest
import torch

from gradleak.attacks.span import Span
from gradleak.core.attack import Clock, Status
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.harness.request.catalogue import Catalogue
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing.model import Model
from gradleak.models import Subject, load_subject
from gradleak.span.candidates.types import Candidates
from gradleak.span.candidates.window import candidates_of
from gradleak.span.encoder.joint_decision import BatchDecision, DecidedBatch
from gradleak.span.noise.encoder_candidates import candidate_sets
from gradleak.span.reading.evidence import AttackInput
from gradleak.span.reading.observed_layer import context_layers, first_layer

REPEATING = ("the cat saw the dog and the dog saw the cat .", "a dog and a cat saw the tree near the house .")
"""Words stand at several positions, and positions hold several of them: pairs (word, position) depend on each other."""


@pytest.mark.parametrize(
    ("dtype", "stage", "least"), [("bf16", "none", 8), ("float32", "gaussian(relative_std=0.01)", 8)]
)
def test_a_direction_lost_to_noise_does_not_cost_the_sentence(dtype: str, stage: str, least: int) -> None:
    """8 × 16 random tokens between MiniLM's own marks. The first position of a sentence shows twenty times what a
    member should, because the direction that it alone has lies below the noise; it stays far from what others show."""
    subject = load_subject("minilm", loss="classification")
    assert subject.tokenizer is not None
    ids = torch.randint(3, subject.anatomy.vocab_size, (8, 16), generator=derive(7, "ids"))
    marks = subject.tokenizer.encode(["a"], 8)[0][0]
    ids[:, 0], ids[:, -1] = marks[0], marks[2]
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=torch.arange(8) % 2)
    trainer = ClientTrainer(subject=subject, training=LocalTraining(dtype=dtype))  # type: ignore[arg-type]
    update = Channel(trainer=trainer, stages=Catalogue().make_stages(stage)).observe(batch, derive(7))
    facts = {"subject": subject, "batch_size": 8, "seq_len": 16}
    found = Span()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(7, "attack"))
    truth, got = {tuple(row.tolist()) for row in ids}, {tuple(r.tolist()) for r in found.records}
    assert got <= truth
    assert len(got) >= least


def test_a_sentence_that_another_explains_is_not_chosen() -> None:
    """One token repeated twelve times, and the same sentence with thirteen: all inputs of the wrong one lie next to those of the
    right one, so that each of its positions looks like a member. It explains nothing beside the right one, whichever of them
    is looked at first, and with it in the place of another record directions stay unexplained."""
    subject = load_subject("minilm", loss="classification")
    assert subject.tokenizer is not None
    first, _, last = subject.tokenizer.encode(["a"], 8)[0][0][:3].tolist()
    ids = torch.randint(1000, 20000, (2, 16), generator=derive(3, "ids"))
    ids[:, 0], ids[:, -1] = first, last
    ids = torch.cat((ids, torch.tensor([[first, *[1011] * 12, last, 0, 0]])))
    mask = ids != 0
    batch = Batch(inputs=ids, mask=mask, labels=torch.arange(3) % 2)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    update = Channel(trainer=trainer, stages=Catalogue().make_stages("gaussian(relative_std=0.01)")).observe(
        batch, derive(3)
    )
    model = Model(subject=subject)
    decision = BatchDecision.of(model, context_layers(update, model, noise_std=lambda name: 0.0, summands=48))
    true = [tuple(row[keep].tolist()) for row, keep in zip(ids, mask, strict=True)]
    wrong = (first, *[1011] * 13, last)
    found = decision.choose([wrong, *true], at_most=None)
    assert set(found.sentences) == set(true)
    assert found.unexplained == 0
    assert decision.choose([wrong, true[0], true[2]], at_most=3).unexplained > 0


def shown(stage: str, seed: int) -> tuple[Subject, Batch, AttackInput, Observation]:
    subject = load_subject("minilm", loss="classification")
    assert subject.tokenizer is not None
    ids, mask = subject.tokenizer.encode(list(REPEATING), 14)
    batch = Batch(inputs=ids, mask=mask, labels=torch.tensor([0, 1]))
    channel = Channel(
        trainer=ClientTrainer(subject=subject, training=LocalTraining()), stages=Catalogue().make_stages(stage)
    )
    facts = {"subject": subject, "batch_size": 2, "seq_len": ids.shape[1]}
    observation = Observation(update=channel.observe(batch, derive(seed)), knowledge=Knowledge(facts=facts))
    return (
        subject,
        batch,
        AttackInput.of(observation.update, observation.knowledge.view(Span.needs | Span.uses)),
        observation,
    )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("stage", ["gaussian(relative_std=0.1)", "quantize(dtype=int8)"])
def test_words_that_repeat_are_placed_under_strong_noise(stage: str, seed: int) -> None:
    _, batch, _, observation = shown(stage, seed)
    found = Span()(observation, rng=derive(seed, "attack"))
    assert found.status is Status.CONVERGED
    assert {tuple(r.tolist()) for r in found.records} == {tuple(r.tolist()) for r in batch.records()}


def pairs(found: Candidates) -> set[tuple[int, int]]:
    return {(place, token) for place, ids in enumerate(found.tokens) for token in ids.tolist()}


def test_pairs_that_noise_hides_are_sought_together() -> None:
    alone, together, true = 0, 0, 0
    for seed in range(3):
        _, batch, case, _ = shown("gaussian(relative_std=0.1)", seed)
        first = first_layer(
            case.readable, case.model, noise_std=case.noise_std, summands=case.summands, mismatch=case.mismatch
        )
        truth = {(place, token) for record in batch.records() for place, token in enumerate(record.tolist())}
        joint = pairs(next(candidate_sets(case, first, derive(seed))))
        assert len(joint) < len(truth) * batch.inputs.shape[1] / 4, "far fewer than every word everywhere"
        together += len(truth & joint)
        alone += len(truth & pairs(candidates_of(case, first, derive(seed))))
        true += len(truth)
    assert together >= 0.95 * true
    assert alone < together


@pytest.mark.parametrize("wrong", ["token", "order", "closing inside", "too long", "too short"])
def test_a_sentence_wrong_in_little_is_put_right_by_its_evidence(wrong: str) -> None:
    _, batch, case, _ = shown("gaussian(relative_std=0.1)", 0)
    readers = context_layers(case.readable, case.model, noise_std=case.noise_std, summands=case.summands)
    one, two = (tuple(record.tolist()) for record in batch.records())
    closing = one[-1]
    changed = {
        "token": (*one[:3], one[1], *one[4:]),
        "order": (*one[:4], one[5], one[4], *one[6:]),
        "closing inside": (*one[:5], closing, *one[6:]),
        "too long": (*one[:-1], one[4], closing),
        "too short": (*one[:-2], closing),
    }[wrong]
    words = torch.tensor(sorted({*one, *two}))
    decision = BatchDecision.of(case.model, readers)
    decided = DecidedBatch(sentences=(changed, two), unexplained=1)
    found = decision.refine(decided, [words] * 16, closing, Clock())
    assert set(found.sentences) == {one, two}
