"""Every attack of the catalogue keeps the contract of ``core.attack.Attack``; a new file is tested without an edit."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from gradleak.core.attack import Attack, Candidate, Clock, Reconstruction, Status
from gradleak.core.batch import Batch, soft_labels
from gradleak.core.channel import Channel
from gradleak.core.knowledge import FACTS, THREATS, Knowledge, Observation, knowledge_of
from gradleak.core.rng import derive
from gradleak.core.specs import Spec, parse_list, spec_of
from gradleak.harness.request import catalogue
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.models.bare import BareAttention, bare_subject

ATTACKS = catalogue.names("attacks")
EFFORT = {"iterations": 3, "restarts": 2, "screened": 2}
"""Knobs that stand for effort, where an attack has them: enough to run every line, not to recover anything."""
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CHAINS = (
    "clip(max_norm=0.5)",
    "clip(max_norm=0.5)+gaussian(noise_multiplier=0.1)",
    "gaussian(relative_std=0.5)",
    "laplace(scale=0.01)",
    "prune(fraction=0.9)",
    "prune(fraction=0.9, scope=tensor)",
    "sign()",
    "quantize(dtype=bf16)",
    "quantize(dtype=int8)",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """A model, and whether its batch is text or images."""

    model: str
    loss: str
    modality: str
    settings: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return f"{self.model.removeprefix('random:')}-{self.loss}"


TEXT = (("vocab_size", 300), ("max_position_embeddings", 16))
SCENARIOS = (
    Scenario(model="random:bert", loss="classification", modality="text", settings=TEXT),
    Scenario(model="random:gpt2", loss="causal-lm", modality="text", settings=TEXT),
    Scenario(
        model="random:vit", loss="classification", modality="image", settings=(("image_size", 8), ("patch_size", 4))
    ),
)
BERT = SCENARIOS[0]
BARE = Scenario(model="bare", loss="squared", modality="image", settings=())
"""The layer of the theory, for attacks that are written for its loss."""


def scenarios_for(name: str) -> list[Scenario]:
    cls = catalogue.find("attacks", name)
    fitting = [s for s in SCENARIOS if not cls.losses or s.loss in cls.losses]
    return [s for s in (*fitting, *([BARE] if BARE.loss in cls.losses else [])) if s.modality in cls.modalities]


CASES = [
    pytest.param(name, scenario, id=f"{name}-{scenario.name}") for name in ATTACKS for scenario in scenarios_for(name)
]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def subject_of(scenario: Scenario) -> Subject:
    if scenario is BARE:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return bare_subject(BareAttention(heads=2, targets=torch.randn(2, 3, 8)))
    return load_subject(scenario.model, loss=scenario.loss, settings={**TINY, **dict(scenario.settings)})


def batch_of(scenario: Scenario, seed: int = 0, size: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    if scenario.modality == "image":
        pixels = torch.rand(size, *subject_of(scenario).pixel_shape, generator=generator)
        return Batch(inputs=pixels, mask=torch.ones(size, dtype=torch.bool), labels=torch.zeros(size, dtype=torch.long))
    ids = torch.randint(10, 200, (size, 5), generator=generator)
    labels = torch.randint(2, (size,), generator=generator)
    if scenario.loss == "causal-lm":
        labels = torch.cat([ids[:, 1:], torch.full((size, 1), -100)], 1)
    return Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)


def observe(
    scenario: Scenario, batch: Batch, *, chain: str = "none", threat: str = "everything", **training: Any
) -> Observation:
    subject = subject_of(scenario)
    trainer = ClientTrainer(subject=subject, training=LocalTraining(**training))
    channel = Channel(trainer=trainer, stages=catalogue.make_stages(chain))
    facts = {
        "subject": subject,
        "trainer": trainer,
        "stages": channel.stages,
        "batch_size": batch.size,
        "seq_len": batch.inputs.shape[1] if scenario.modality == "text" else None,
        "mask": batch.mask.clone(),
        "labels": batch.labels.clone(),
        "candidates": tuple(r.clone() for seed in (7, 0, 8) for r in batch_of(scenario, seed, batch.size).records()),
    }
    knowledge = Knowledge(facts=facts) if threat == "everything" else knowledge_of(THREATS[threat], facts)
    return Observation(update=channel.observe(batch, derive(0, "channel")), knowledge=knowledge)


def quick(name: str, **knobs: Any) -> Attack:
    """The attack with little effort."""
    known = {f.name for f in dataclasses.fields(catalogue.find("attacks", name)) if f.init}
    return catalogue.make("attacks", Spec(type=name, args={k: v for k, v in {**EFFORT, **knobs}.items() if k in known}))


def run(attack: Attack, observation: Observation, seed: int = 0, clock: Clock | None = None) -> Reconstruction:
    return attack(observation, rng=torch.Generator().manual_seed(seed), clock=clock)


def same(left: Reconstruction, right: Reconstruction) -> bool:
    """Bitwise the same proposal, with the same account of how it was found."""
    plain = [
        (r.status, r.ordered, r.labels, r.objective, r.trace, r.certificate, r.adapted, dict(r.statistics))
        for r in (left, right)
    ]
    tensors = [(*r.records, *r.confidence) for r in (left, right)]
    pairs = zip(*tensors, strict=False)
    return plain[0] == plain[1] and len(tensors[0]) == len(tensors[1]) and all(torch.equal(a, b) for a, b in pairs)


def assert_well_formed(found: Reconstruction, scenario: Scenario, stages: tuple[str, ...] = ()) -> None:
    subject = subject_of(scenario)
    assert found.status.value and isinstance(found.message, str)
    for record in found.records:
        if scenario.modality == "image":
            assert record.shape == subject.pixel_shape and bool(torch.isfinite(record).all())
        else:
            assert record.ndim == 1 and record.dtype == torch.int64
            assert bool(((record >= 0) & (record < subject.anatomy.vocab_size)).all())
    assert found.ordered or len(found.records) <= 1, "one bag for the whole batch"
    assert found.labels is None or all(0 <= label < subject.classes for label in found.labels)
    assert set(found.adapted) <= set(stages)
    assert all(isinstance(v, float) and math.isfinite(v) for v in found.statistics.values()), found.statistics
    assert all(math.isfinite(v) and i >= 0 for i, v in found.trace)
    claims = [sure.shape for sure in found.confidence]
    assert not claims or claims == [record.shape for record in found.records]
    assert all(sure.is_floating_point() and bool(((sure >= 0) & (sure <= 1)).all()) for sure in found.confidence)
    numbers = (found.objective, found.certificate)
    json.dumps(numbers, allow_nan=False)
    if found.status in (Status.NOT_APPLICABLE, Status.NOTHING_FOUND):
        assert not found.records and found.message
    if found.status is Status.EXACT:
        assert found.certificate is not None and found.records


def test_there_are_attacks() -> None:
    assert ATTACKS and {case.values[0] for case in CASES} == set(ATTACKS), "every attack applies to some scenario"


@pytest.mark.parametrize("name", ATTACKS)
def test_says_what_it_is(name: str) -> None:
    cls = catalogue.find("attacks", name)
    assert cls.summary.endswith(".") and len(cls.summary) <= 120
    assert cls.needs <= FACTS.keys() and cls.uses <= FACTS.keys()
    assert not cls.needs & cls.uses
    assert cls.modalities and cls.modalities <= {"text", "image"}
    told = catalogue.explain("attacks", name)
    assert told["source"], "a method says where it comes from"
    assert all(argument["meaning"] for argument in told["arguments"]), told["arguments"]
    assert all(told["needs"].values()) and all(told["uses"].values())


@pytest.mark.parametrize("name", ATTACKS)
def test_spec_round_trips(name: str) -> None:
    for attack in (catalogue.make("attacks", Spec(type=name)), quick(name)):
        spec = spec_of(attack)
        assert catalogue.make("attacks", Spec(**json.loads(json.dumps(spec.to_plain())))) == attack
        assert parse_list(str(spec)) == (spec,)
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
            attack.anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ATTACKS)
def test_without_knowledge_it_says_what_it_lacks(name: str) -> None:
    informed = observe(BERT, batch_of(BERT))
    found = run(quick(name), Observation(update=informed.update, knowledge=Knowledge(facts={})))
    assert found.status is Status.NOT_APPLICABLE and not found.records
    for fact in catalogue.find("attacks", name).needs:
        assert FACTS[fact] in found.message


@pytest.mark.parametrize(("name", "scenario"), CASES)
def test_applies_to_what_it_says(name: str, scenario: Scenario) -> None:
    """An undefended gradient in the hands of one who knows everything: no attack may bow out."""
    found = run(quick(name), observe(scenario, batch_of(scenario)))
    assert found.status is not Status.NOT_APPLICABLE, found.message


@pytest.mark.parametrize("threat", sorted(THREATS))
@pytest.mark.parametrize(("name", "scenario"), CASES)
def test_every_adversary_gets_a_well_formed_answer(name: str, scenario: Scenario, threat: str) -> None:
    observation = observe(scenario, batch_of(scenario, size=2), threat=threat)
    attack = quick(name)
    found = run(attack, observation)
    assert_well_formed(found, scenario)
    if observation.knowledge.missing(attack.needs):
        assert found.status is Status.NOT_APPLICABLE


@pytest.mark.parametrize(
    "share", [{"share": "delta", "steps": 2, "lr": 0.1}, {"dtype": "bf16"}, {"dropout": True}], ids=str
)
@pytest.mark.parametrize("name", [n for n in ATTACKS if "text" in catalogue.find("attacks", n).modalities])
def test_every_way_to_share_gets_a_well_formed_answer(name: str, share: dict[str, Any]) -> None:
    assert_well_formed(run(quick(name), observe(BERT, batch_of(BERT), **share)), BERT)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("name", [n for n in ATTACKS if "text" in catalogue.find("attacks", n).modalities])
def test_every_defense_gets_a_well_formed_answer(name: str, chain: str) -> None:
    stages = tuple(spec_of(stage).type for stage in catalogue.make_stages(chain))
    assert_well_formed(run(quick(name), observe(BERT, batch_of(BERT), chain=chain)), BERT, stages)


@pytest.mark.parametrize("name", [n for n in ATTACKS if "text" in catalogue.find("attacks", n).modalities])
def test_who_does_not_know_the_defense_does_not_adapt(name: str) -> None:
    found = run(quick(name), observe(BERT, batch_of(BERT), chain="sign()", threat="naive_server"))
    assert found.adapted == ()


@pytest.mark.parametrize(("name", "scenario"), CASES)
def test_is_blind(name: str, scenario: Scenario) -> None:
    """The secret is overwritten in place after the capture, and another batch is trained on: nothing may change."""
    attack, batch = quick(name), batch_of(scenario)
    observation = observe(scenario, batch)
    first = run(attack, observation)
    batch.inputs.copy_(batch_of(scenario, seed=1).inputs)
    batch.labels.zero_()
    observation.knowledge.facts["trainer"].update(batch_of(scenario, seed=2), derive(0, "other"))
    assert same(run(attack, observation), first)


@pytest.mark.parametrize(("name", "scenario"), CASES)
def test_draws_come_from_the_generator_alone(name: str, scenario: Scenario) -> None:
    attack, observation = quick(name), observe(scenario, batch_of(scenario))
    torch.manual_seed(1)
    first = run(attack, observation)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same(run(attack, observation), first)
    assert torch.equal(torch.get_rng_state(), before), "the attack drew from the global generator"


@pytest.mark.parametrize(("name", "scenario"), CASES)
def test_leaves_model_and_update_as_they_were(name: str, scenario: Scenario) -> None:
    module, observation = subject_of(scenario).module, observe(scenario, batch_of(scenario))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    released = {key: value.clone() for key, value in observation.update.items()}
    run(quick(name), observation)
    assert not module.training and all(p.grad is None for p in module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(torch.equal(value, released[key]) for key, value in observation.update.items())


@pytest.mark.parametrize(("name", "scenario"), CASES)
def test_a_spent_clock_ends_it(name: str, scenario: Scenario) -> None:
    """With a million iterations to go, only the clock can end a search in time."""
    started = time.monotonic()
    found = run(quick(name, iterations=10**6), observe(scenario, batch_of(scenario)), clock=Clock(0.0))
    assert time.monotonic() - started < 10.0
    assert_well_formed(found, scenario)
    assert found.status is not Status.ITERATIONS_SPENT


@pytest.mark.parametrize(("name", "scenario"), CASES)
def test_progress_stays_within_the_work(name: str, scenario: Scenario) -> None:
    heard: list[float] = []
    run(
        quick(name),
        observe(scenario, batch_of(scenario)),
        clock=Clock(report=lambda fraction, _: heard.append(fraction)),
    )
    assert all(0.0 <= fraction <= 1.0 for fraction in heard) and heard == sorted(heard)


@pytest.mark.parametrize(("name", "scenario"), CASES)
def test_objective_can_be_judged_at_the_truth(name: str, scenario: Scenario) -> None:
    batch, subject = batch_of(scenario), subject_of(scenario)
    observation = observe(scenario, batch)
    objective = quick(name).objective_on(observation)
    found = run(quick(name), observation)
    assert (objective is None) == (found.objective is None), "what is minimized must be open to the judge"
    if objective is None or found.objective is None:
        return
    inputs: Tensor = batch.inputs if scenario.modality == "image" else subject.embed(batch.inputs).detach()
    at_truth = objective(Candidate(inputs=inputs, labels=soft_labels(batch.labels, subject.classes)))
    assert math.isfinite(at_truth)
    assert at_truth < found.objective, "three iterations cannot beat the truth"
