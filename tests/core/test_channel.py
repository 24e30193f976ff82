"""The channel against slow derivations: per-example gradients against single records, clients against one big client,
stages at their places, memory that is threaded and never kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from gradleak.core.batch import Batch, TrainingData, soft_labels
from gradleak.core.channel import Channel, Memory, deal
from gradleak.core.errors import DataError, ModelError, SpecError
from gradleak.core.rng import derive
from gradleak.core.stage import Client, ClientStage, DataStage, State, TrainingStage
from gradleak.core.update import Update
from gradleak.defenses.frozen_blocks import FrozenBlocks
from gradleak.defenses.frozen_embeddings import FrozenEmbeddings
from gradleak.harness.request.catalogue import make_stages
from gradleak.matching.replay import Replay
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.oracle

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**TINY, "vocab_size": 300, "max_position_embeddings": 16}
MODELS = {
    "bert": ("classification", TEXT),
    # Its activation brings a backward of its own, which torch cannot vectorize.
    "bloom": ("classification", {**TINY, "vocab_size": 300}),
    "distilbert": ("classification", TEXT),
    "gpt2": ("causal-lm", TEXT),
    "llama": ("causal-lm", TEXT),
    "mixtral": ("classification", TEXT),
    "opt": ("classification", TEXT),
    "vit": ("classification", {**TINY, "image_size": 8, "patch_size": 4}),
}


@cache
def subject_of(kind: str) -> Subject:
    loss, settings = MODELS[kind]
    subject = load_subject(f"random:{kind}", loss=loss, settings=settings)
    subject.module.double()
    return subject


def batch_of(kind: str, size: int = 4, *, padded: bool = True) -> Batch:
    rng = derive(0, kind)
    if kind == "vit":
        pixels = torch.rand(size, *subject_of(kind).pixel_shape, generator=rng, dtype=torch.float64)
        return Batch(inputs=pixels, mask=torch.ones(size, dtype=torch.bool), labels=torch.arange(size) % 2)
    ids = torch.randint(10, 200, (size, 7), generator=rng)
    mask = torch.ones_like(ids, dtype=torch.bool)
    if padded:
        mask[1, 4:] = mask[3, 4:] = mask[2, 6:] = False
    labels = torch.arange(size) % 2 if MODELS[kind][0] == "classification" else ids.masked_fill(~mask, -100)
    return Batch(inputs=ids, mask=mask, labels=labels)


def trainer_of(kind: str, **training: object) -> ClientTrainer:
    return ClientTrainer(subject=subject_of(kind), training=LocalTraining(**training))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class Mean(TrainingStage):
    """The plain mean of the examples' gradients: with it nothing may change."""

    summary: ClassVar[str] = "Mean."

    def aggregate(self, gradients: Mapping[str, Tensor], iteration: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {name: each.mean(0) for name, each in gradients.items()}

    def surrogate(self, gradients: Mapping[str, Tensor], iteration: int) -> Mapping[str, Tensor]:
        return {name: each.mean(0) for name, each in gradients.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Count(Mean):
    """Releases the iteration that it was told."""

    def aggregate(self, gradients: Mapping[str, Tensor], iteration: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {name: torch.full_like(each[0], float(iteration)) for name, each in gradients.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally(ClientStage):
    """Adds what it kept to the update and keeps the result."""

    def apply(self, update: Update, client: Client, rng: torch.Generator) -> tuple[Update, State]:
        kept = update.map(lambda name, tensor: tensor + client.state.get(name, torch.zeros_like(tensor)))
        return kept, dict(kept)

    def surrogate(self, simulated: Mapping[str, Tensor], observed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return simulated


@dataclass(frozen=True, kw_only=True, slots=True)
class Reverse(DataStage):
    """Trains on the records backwards."""

    def apply(self, client: Client, rng: torch.Generator) -> TrainingData:
        data = client.data
        return TrainingData(inputs=data.inputs.flip(0), targets=data.targets.flip(0), mask=data.mask.flip(0))


def assert_close(left: Mapping[str, Tensor], right: Mapping[str, Tensor], rtol: float = 1e-6) -> None:
    assert left.keys() == right.keys()
    size = max(float(t.detach().abs().max()) for t in right.values())
    for name in right:
        torch.testing.assert_close(left[name].to(right[name]), right[name], rtol=rtol, atol=rtol * size, msg=name)


@pytest.mark.parametrize(("kind", "in_front"), [*((kind, False) for kind in MODELS), ("gpt2", True)])
def test_example_gradients_are_those_of_single_records(kind: str, in_front: bool) -> None:
    trainer, batch = trainer_of(kind), batch_of(kind)
    if in_front:
        batch = Batch(inputs=batch.inputs.flip(1), mask=batch.mask.flip(1), labels=batch.labels.flip(1))
        assert not batch.mask[:, 0].all()
    weights = {name: value.detach() for name, value in trainer.subject.trainable().items()}
    found = trainer.example_gradients(weights, trainer.prepare(batch))
    for row in range(batch.size):
        # The record alone, with its padding: another path through the model than the cut records of one pass.
        alone = Batch(inputs=batch.inputs[[row]], mask=batch.mask[[row]], labels=batch.labels[[row]])
        single = trainer._gradient(weights, trainer.prepare(alone), differentiable=False)
        assert_close({name: each[row] for name, each in found.items()}, single, rtol=1e-9)


@pytest.mark.parametrize("kind", ["bert", "vit"])
@pytest.mark.parametrize("share", [{}, {"share": "delta", "steps": 3, "lr": 0.1}], ids=["gradient", "delta"])
def test_the_mean_as_a_training_stage_changes_nothing(kind: str, share: dict[str, object]) -> None:
    trainer, batch = trainer_of(kind, **share), batch_of(kind)
    staged = Channel(trainer=trainer, stages=(Mean(),)).observe(batch, derive(0, "x"))
    assert_close(staged, trainer.update(batch, derive(0, "x")))
    inputs = batch.inputs if kind == "vit" else trainer.subject.embed(batch.inputs).detach()
    targets = soft_labels(batch.labels, 2).double()
    plain = trainer.replay(inputs, targets, batch.mask)
    assert_close(trainer.replay(inputs, targets, batch.mask, stage=Mean()), plain, rtol=1e-9)


def test_a_training_stage_is_told_the_iterations_of_all_rounds() -> None:
    channel = Channel(trainer=trainer_of("bert", share="delta", steps=2, lr=1.0), stages=(Count(),))
    memory, batch = Memory(), batch_of("bert")
    for expected in (0 + 1, 2 + 3, 4 + 5):
        update, memory = channel.client(batch, memory, derive(0, "x"))
        assert all(bool((tensor + expected).abs().max() < 1e-9) for tensor in update.values())


def test_replayed_example_gradients_are_differentiable_in_the_data() -> None:
    trainer, batch = trainer_of("bert"), batch_of("bert", 2, padded=False)
    inputs = trainer.subject.embed(batch.inputs).detach().requires_grad_()
    direction = torch.randn(inputs.shape, generator=derive(0, "direction"), dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        found = trainer.replay(x, soft_labels(batch.labels, 2).double(), batch.mask, stage=Mean())
        return sum((t.square().sum() for t in found.values()), torch.zeros(()))

    (slope,) = torch.autograd.grad(value(inputs), inputs)
    step = 1e-7
    numeric = (value(inputs + step * direction) - value(inputs - step * direction)) / (2 * step)
    torch.testing.assert_close((slope * direction).sum(), numeric, rtol=1e-6, atol=0.0)


def test_secure_aggregation_of_gradients_is_the_gradient_of_the_whole_batch() -> None:
    trainer, batch = trainer_of("bert"), batch_of("bert", 5)
    joint = Channel(trainer=trainer, stages=make_stages("secure_aggregation(number=3)")).observe(batch, derive(0, "x"))
    assert_close(joint, trainer.update(batch, derive(0, "x")))


@pytest.mark.parametrize("chain", ["secure_aggregation(number=2)", "clip(max_norm=0.01)+secure_aggregation(number=3)"])
def test_the_replay_of_several_clients_is_what_they_release(chain: str) -> None:
    trainer, batch = trainer_of("vit", share="delta", steps=2, lr=0.5), batch_of("vit", 5)
    channel = Channel(trainer=trainer, stages=make_stages(chain))
    released = channel.observe(batch, derive(0, "x"))
    replay = Replay(trainer=trainer, stages=channel.stages, names=trainer.names(), released=released, share=1.0)
    found = replay.simulate(batch.inputs.unsqueeze(0), soft_labels(batch.labels, 2).double().unsqueeze(0), batch.mask)
    assert_close({name: part[0] for name, part in found.items()}, released)  # type: ignore[index]


def test_every_kind_acts_at_its_place_and_noise_may_follow_the_protocol() -> None:
    trainer, batch = trainer_of("bert"), batch_of("bert")
    stages = (
        Reverse(),
        *make_stages("frozen_embeddings()"),
        Mean(),
        Tally(),
        *make_stages("secure_aggregation(number=2)"),
    )
    released = Channel(trainer=trainer, stages=stages).observe(batch, derive(0, "x"))
    plain = trainer.update(batch, derive(0, "x"))
    assert_close(released, {name: plain[name] for name in released})
    assert plain.keys() - released.keys() == FrozenEmbeddings().change(trainer.subject).frozen
    noisy = Channel(trainer=trainer, stages=(*stages, *make_stages("gaussian(std=1.0)"))).observe(batch, derive(0, "x"))
    assert all(not torch.equal(noisy[name], released[name]) for name in released)


def test_memory_is_threaded_and_a_fresh_one_starts_over() -> None:
    channel = Channel(trainer=trainer_of("bert"), stages=(Tally(),))
    batch, memory = batch_of("bert"), Memory()
    first, memory = channel.client(batch, memory, derive(0, "x"))
    second, memory = channel.client(batch, memory, derive(0, "x"))
    assert memory.rounds == 2
    assert_close(second, {name: 2 * tensor for name, tensor in first.items()})
    assert_close(channel.client(batch, Memory(), derive(0, "x"))[0], first)


@pytest.mark.parametrize(
    "chain",
    [
        "clip(max_norm=1)+frozen_embeddings()",
        "secure_aggregation(number=2)+frozen_blocks(blocks=1)",
        "secure_aggregation(number=2)+secure_aggregation(number=2)",
    ],
)
def test_a_stage_out_of_place_is_refused(chain: str) -> None:
    with pytest.raises(SpecError, match="in the order in which they act"):
        Channel(trainer=trainer_of("bert"), stages=make_stages(chain))


def test_misuse_is_refused_with_a_remedy() -> None:
    trainer, batch = trainer_of("bert"), batch_of("bert")
    with pytest.raises(DataError, match="Raise --batch-size"):
        deal(batch, 9)
    with pytest.raises(SpecError, match="Call observe"):
        Channel(trainer=trainer, stages=(FrozenEmbeddings(),)).defend(
            trainer.update(batch, derive(0, "x")), derive(0, "y")
        )
    with pytest.raises(SpecError, match="protocol that joins"):
        Channel(trainer=trainer).join((trainer.update(batch, derive(0, "x")),) * 2, (1, 1), derive(0, "y"))
    with pytest.raises(ModelError, match="at most 1"):
        FrozenBlocks(blocks=2).change(trainer.subject)
    with pytest.raises(ModelError, match="no table"):
        FrozenEmbeddings().change(FrozenEmbeddings().change(trainer.subject))
