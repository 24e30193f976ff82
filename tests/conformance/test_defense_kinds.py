"""Defenses that see more than the update keep the contract of their kind, each run in a channel on a tiny transformer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from gradleak.attacks.dlg import DLG
from gradleak.core.attack import Candidate, Reconstruction
from gradleak.core.batch import Batch, soft_labels
from gradleak.core.channel import Channel, Memory, deal
from gradleak.core.errors import ModelError
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.specs import Spec, parse_chain
from gradleak.core.stage import ClientStage, DataStage, ProtocolStage
from gradleak.core.update import Update
from gradleak.harness.captured.files import save_observation
from gradleak.harness.captured.loading import load_observation
from gradleak.harness.request import catalogue
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = {**TINY, "vocab_size": 300, "max_position_embeddings": 16}
IMAGE = {**TINY, "image_size": 8, "patch_size": 4}
RECORDS = 4


@cache
def subject_of(modality: str) -> Subject:
    return load_subject(
        "random:bert" if modality == "text" else "random:vit", settings=TEXT if modality == "text" else IMAGE
    )


def batch_of(modality: str, seed: int = 0) -> Batch:
    rng = derive(seed, "private")
    labels = torch.tensor([0, 1, 1, 0])
    if modality == "image":
        pixels = torch.rand(RECORDS, *subject_of(modality).pixel_shape, generator=rng)
        return Batch(inputs=pixels, mask=torch.ones(RECORDS, dtype=torch.bool), labels=labels)
    ids = torch.randint(10, 200, (RECORDS, 6), generator=rng)
    return Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)


def channel_of(spec: Spec, modality: str, **training: Any) -> Channel:
    trainer = ClientTrainer(subject=subject_of(modality), training=LocalTraining(**training))
    chain = "+".join(filter(None, (catalogue.find("defenses", spec.type).behind, str(spec))))
    return Channel(trainer=trainer, stages=tuple(catalogue.make("defenses", each) for each in parse_chain(chain)))


@pytest.fixture
def modality(client_spec: Spec) -> str:
    """The modality of the defense; both have at least one that takes it."""
    for each in ("text", "image"):
        with contextlib.suppress(ModelError):
            channel_of(client_spec, each).observe(batch_of(each), derive(0, "probe"))
            return each
    raise AssertionError(f"{client_spec} runs neither on the tiny encoder nor on the tiny vision transformer")


def same(left: Update, right: Update) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def observation_of(
    channel: Channel, batch: Batch, modality: str, *, informed: bool = True, seed: int = 0
) -> Observation:
    trainer = channel.deployed()
    facts: dict[str, Any] = {"subject": trainer.subject, "trainer": trainer, "batch_size": batch.size}
    facts |= {"seq_len": batch.inputs.shape[1]} if modality == "text" else {}
    facts |= {"stages": channel.stages} if informed else {}
    return Observation(update=channel.observe(batch, derive(seed, "channel")), knowledge=Knowledge(facts=facts))


@pytest.mark.parametrize("name", catalogue.names("defenses"))
def test_every_defense_has_an_example(name: str, examples_of: Callable[[str], list[Spec]]) -> None:
    assert examples_of(name)


def test_changes_the_release(client_spec: Spec, modality: str) -> None:
    channel, batch = channel_of(client_spec, modality), batch_of(modality)
    if isinstance(channel.stages[-1], ProtocolStage | ClientStage):
        # Sums show in a delta only, and a bound only on an update that is longer than it.
        channel = channel_of(client_spec, modality, share="delta", steps=2, lr=5.0)
    plain = channel.trainer.train(channel.trainer.prepare(batch), derive(0, "channel"))
    assert not same(channel.observe(batch, derive(0, "channel")), plain)


def test_leaves_batch_and_model_alone_and_draws_from_the_generator_only(client_spec: Spec, modality: str) -> None:
    batch, untouched = batch_of(modality), batch_of(modality)
    module = subject_of(modality).module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    channel = channel_of(client_spec, modality)
    torch.manual_seed(1)
    first = channel.observe(batch, derive(3, "channel"))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert same(channel.observe(batch, derive(3, "channel")), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(batch.inputs, untouched.inputs)
    assert module.state_dict().keys() == before.keys() and not module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(not each._forward_hooks and not each._forward_pre_hooks for each in module.modules())


def test_keeps_the_number_format(client_spec: Spec, modality: str) -> None:
    released = channel_of(client_spec, modality, dtype="bf16").observe(batch_of(modality), derive(0, "channel"))
    assert all(tensor.dtype == torch.bfloat16 for tensor in released.values())


def test_states_of_clients_do_not_mix(client_spec: Spec, modality: str) -> None:
    """Two clients that take turns release what each releases alone."""
    channel = channel_of(client_spec, modality)
    parts = {name: deal(batch_of(modality, seed), channel.clients())[0] for seed, name in enumerate("ab")}

    def rounds(turns: str) -> dict[str, list[Update]]:
        memories, found = {name: Memory() for name in parts}, {name: [] for name in parts}
        for name in turns:
            rng = derive(0, name, memories[name].rounds)
            update, memories[name] = channel.client(parts[name], memories[name], rng)
            found[name].append(update)
        return found

    mixed, alone = rounds("abab"), {"a": rounds("aa")["a"], "b": rounds("bb")["b"]}
    for name in parts:
        assert all(same(x, y) for x, y in zip(mixed[name], alone[name], strict=True))


def test_a_capture_can_be_read_by_who_knows_the_stages(client_spec: Spec, modality: str, tmp_path: Path) -> None:
    observation = observation_of(channel_of(client_spec, modality), batch_of(modality), modality)
    save_observation(observation, tmp_path / "seen")
    again = load_observation(tmp_path / "seen", subject_of(modality))
    assert same(again.update, observation.update)
    assert again.knowledge.facts["stages"] == observation.knowledge.facts["stages"]


def test_an_attack_on_it_is_well_formed(client_spec: Spec, modality: str) -> None:
    observation = observation_of(channel_of(client_spec, modality), batch_of(modality), modality)
    found = DLG(iterations=2, restarts=1, screened=1)(observation, rng=derive(0, "attack"))
    stage = channel_of(client_spec, modality).stages[-1]
    modeled = not isinstance(stage, DataStage) or stage.surrogate_is_identity() or stage.unknowns(RECORDS) is not None
    assert isinstance(found, Reconstruction) and (client_spec.type in found.adapted) == modeled


def test_what_is_searched_of_a_data_stage_is_what_it_may_draw(client_spec: Spec, modality: str) -> None:
    """Shapes stay, slopes are finite, and records and draws are both followed."""
    stage = channel_of(client_spec, modality).stages[-1]
    shape = stage.unknowns(RECORDS) if isinstance(stage, DataStage) else None
    if shape is None:
        return
    batch, classes = batch_of(modality), subject_of(modality).classes
    inputs = batch.inputs.expand(2, *batch.inputs.shape).clone().requires_grad_()
    targets = soft_labels(batch.labels, classes).expand(2, RECORDS, classes)
    draw = torch.randn(2, *shape, generator=derive(0, "draw")).requires_grad_()
    seen, labels = stage.guessed(inputs, targets, draw)
    assert seen.shape == inputs.shape and labels.shape == targets.shape
    total = (seen * torch.rand(seen.shape, generator=derive(1, "x"))).sum() + labels.square().sum()
    slopes = torch.autograd.grad(total, (inputs, draw), allow_unused=True)
    assert all(slope is None or bool(torch.isfinite(slope).all()) for slope in slopes)
    assert slopes[1] is not None


def test_knowing_the_stage_is_no_disadvantage(
    client_spec: Spec, modality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the truth the informed simulation is at least as close to the release as the uninformed one.

    Without the noise and the sampling of a mechanism, and the draws of random layers: neither of the two can know them, and
    they would make it a toss-up.
    """
    monkeypatch.setattr(ClientTrainer, "with_noise", lambda self, data, rng: data)
    channel, batch = channel_of(_quiet(client_spec), modality), batch_of(modality)
    subject = subject_of(modality)
    inputs = batch.inputs if modality == "image" else subject.embed(batch.inputs).detach()
    truth = Candidate(inputs=inputs, labels=soft_labels(batch.labels, subject.classes))
    informed, naive = (
        DLG().objective_on(observation_of(channel, batch, modality, informed=told)) for told in (True, False)
    )
    assert informed is not None and naive is not None
    assert informed(truth) <= naive(truth) * (1 + 1e-5) + 1e-9


def _quiet(spec: Spec) -> Spec:
    still = {"noise_multiplier": 0.0, "sampling_rate": 1.0, "relative_std": 1e-9}
    names = {f.name for f in dataclasses.fields(catalogue.find("defenses", spec.type))}
    return Spec(type=spec.type, args={**spec.args, **{key: value for key, value in still.items() if key in names}})
