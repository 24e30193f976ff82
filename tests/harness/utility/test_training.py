"""What the measurement of utility promises: one door for every defense, the same seeds, and training that really trains."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gradleak.core.channel import Channel, Memory
from gradleak.core.errors import DataError, SpecError
from gradleak.harness.request import catalogue
from gradleak.harness.request.plan import Call
from gradleak.harness.request.prepare import read_chain
from gradleak.harness.utility import training as utility
from gradleak.harness.utility.tasks import TASKS, make_task
from gradleak.harness.utility.training import Schedule, Trained, drop, interval, train
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining

pytestmark = pytest.mark.contract

BRIEF = Schedule(rounds=2, clients=2, batch_size=4, seeds=1)
REQUIRED = {
    "gaussian": "std=0.01",
    "laplace": "scale=0.01",
    "secure_aggregation": "number=2",
    "frozen_blocks": "blocks=1",
    "quantize": "dtype=int8",
}
"""Arguments of the built-in defenses that have no usable default."""


def _call(name: str) -> tuple[Call, ...]:
    behind = catalogue.find("defenses", name).behind
    if name in REQUIRED:
        arguments = REQUIRED[name]
    else:
        required = [item for item in catalogue.explain("defenses", name)["arguments"] if item["required"]]
        values = {"int": "1", "float": "0.5", "str": "a"}
        arguments = ", ".join(f"{each['name']}={values[each['type']]}" for each in required)
    return read_chain("+".join(filter(None, (behind, f"{name}({arguments})"))))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", catalogue.names("defenses"))
def test_every_defense_of_the_catalogue_goes_through_the_same_door(name: str, task: str) -> None:
    found = train(task, _call(name), 0, BRIEF)
    if found.accuracy is None:
        assert len(found.reason) > 20, "a defense that does not apply says why"
    else:
        assert 0 <= found.accuracy <= 1 and len(found.losses) == 2 and found.cpu_seconds > 0


def test_noise_below_a_bottleneck_is_trained_with_it() -> None:
    """The bottleneck is deployed once and then no stage of the rounds: the noise must not miss it."""
    assert train("topics", read_chain("precode()+ppp(relative_std=0.1)"), 0, BRIEF).accuracy is not None


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seeds_are_used_with_and_without(task: str) -> None:
    plain, noisy = (train(task, chain, 3, BRIEF) for chain in ((), read_chain("gaussian(relative_std=5.0)")))
    assert plain.draws == noisy.draws
    assert plain.losses[0] == noisy.losses[0], "the same weights meet the same records before the first step"
    assert plain.losses[1] != noisy.losses[1], "the defense acts"
    other = train(task, (), 4, BRIEF)
    assert other.draws != plain.draws and other.losses[0] != plain.losses[0]


def test_noise_of_size_zero_costs_nothing() -> None:
    plain, noisy = (train("topics", chain, 0, BRIEF) for chain in ((), read_chain("gaussian(std=0.0)")))
    assert plain.losses == noisy.losses and plain.accuracy == noisy.accuracy


def test_secure_aggregation_trains_as_the_plain_mean_of_as_many_clients() -> None:
    schedule = dataclasses.replace(BRIEF, rounds=4, clients=3)
    plain, joined = (train("topics", chain, 0, schedule) for chain in ((), read_chain("secure_aggregation(number=3)")))
    assert plain.draws == joined.draws
    assert torch.allclose(torch.tensor(plain.losses), torch.tensor(joined.losses), rtol=1e-4)


def test_what_a_client_keeps_is_counted() -> None:
    kept = train("topics", read_chain("dgc(fraction=0.9)"), 0, BRIEF).kept_bytes
    task = make_task("topics", 0)
    trainer = ClientTrainer(subject=task.subject, training=LocalTraining())
    channel = Channel(trainer=trainer, stages=catalogue.make_stages("dgc(fraction=0.9)"))
    _, memory = channel.client(task.test, Memory(), torch.Generator().manual_seed(0))
    one = sum(t.numel() * t.element_size() for state in memory.states for t in state.values())
    assert one > 0 and kept == BRIEF.clients * one


def test_a_delta_is_a_step_downhill() -> None:
    schedule = dataclasses.replace(BRIEF, rounds=40, clients=2, batch_size=16)
    found = train("topics", (), 0, schedule, LocalTraining(share="delta", steps=2, lr=0.05))
    assert sum(found.losses[-5:]) < 0.8 * sum(found.losses[:5])


def test_a_short_run_learns_and_heavy_noise_prevents_it() -> None:
    schedule = dataclasses.replace(BRIEF, rounds=60, clients=4, batch_size=16)
    plain = train("topics", (), 0, schedule)
    noisy = train("topics", read_chain("gaussian(std=10.0)"), 0, schedule)
    assert plain.accuracy is not None and noisy.accuracy is not None
    # 400 held-out records: four standard errors of a guess are below 0.09.
    assert plain.accuracy > 0.6 and noisy.accuracy < plain.accuracy - 0.1


def test_the_interval_is_that_of_student() -> None:
    found = interval([0.1, 0.2, 0.3])
    assert found.value == pytest.approx(0.2)
    # t(0.975, 2) = 4.3027, standard error 0.1 / √3.
    assert found.high == pytest.approx(0.2 + 4.30265 * 0.1 / 3**0.5, rel=1e-5)
    alone = interval([0.4])
    assert (alone.low, alone.high) == (None, None)


def test_the_drop_pairs_seeds() -> None:
    found = drop({0: 0.5, 1: 0.7, 9: 0.0}, {0: 0.6, 1: 0.8, 2: 1.0})
    assert found.n == 2 and found.value == pytest.approx(0.1) and found.high == pytest.approx(0.1)
    with pytest.raises(DataError, match="no seed in common"):
        drop({0: 0.5}, {1: 0.5})


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"clients": 0}, {"seeds": -1}, {"batch_size": 0}, {"lr": 0.0}])
def test_a_schedule_refuses_what_it_cannot_run(wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="utility run needs"):
        Schedule(**wrong)  # pyright: ignore[reportArgumentType]


def test_too_many_clients_are_refused_with_a_reason() -> None:
    found = train("topics", (), 0, dataclasses.replace(BRIEF, clients=5000))
    assert isinstance(found, Trained) and found.accuracy is None and "5000 clients" in found.reason
    assert utility.interval([1.0]).n == 1
