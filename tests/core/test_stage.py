"""Kinds of stages: what each promises where a subclass says nothing must not flatter a defense."""

from __future__ import annotations

import inspect

import pytest
import torch

from gradleak.core import stage as stages
from gradleak.core.batch import Batch, TrainingData
from gradleak.core.rng import derive
from gradleak.core.stage import (
    Client,
    ClientStage,
    DataStage,
    ModelStage,
    NormStage,
    ProtocolStage,
    Run,
    Stage,
    TrainingStage,
    UpdateStage,
)
from gradleak.core.update import Update

pytestmark = pytest.mark.contract


class Halve(UpdateStage):
    def apply(self, update: Update, rng: torch.Generator) -> Update:
        return update.map(lambda _, tensor: tensor / 2)

    def surrogate(self, simulated, observed):  # type: ignore[no-untyped-def]
        return {name: tensor / 2 for name, tensor in simulated.items()}


class Forget(DataStage):
    def apply(self, client: Client, rng: torch.Generator) -> TrainingData:
        return client.data


def test_a_stage_that_says_nothing_claims_nothing() -> None:
    stage = Halve()
    assert stage.norm_bound() is None and stage.gaussian_multiplier() is None and stage.describe(Run()) is None
    assert not stage.preserves_norm_bound(), "a bound is not inherited by default"
    assert not stage.surrogate_is_identity(), "an attacker simulates the stage by default"
    assert stage.rescale(torch.ones(2), 1.0) is None
    assert stage.noise_std(torch.ones(3)) == 0.0 and stage.ignored(None) == frozenset()
    assert stage.bind((Halve(),)) is stage


def test_an_update_stage_is_studied_as_it_is() -> None:
    stage, released = Halve(), {"w": torch.ones(2)}
    studied, seen = stage.studied(released, trainer=None)
    assert studied is stage and seen is released
    assert stage.apply(Update(released), derive(0))["w"].tolist() == [0.5, 0.5]


def test_a_data_stage_without_a_surrogate_is_one_that_the_attacker_cannot_undo() -> None:
    ids = torch.ones(1, 2, dtype=torch.int64)
    batch = Batch(inputs=ids, mask=ids.bool(), labels=torch.zeros(1, dtype=torch.int64))
    data = TrainingData(inputs=ids, targets=torch.ones(1, 2), mask=ids.bool())
    client, stage = Client(batch=batch, data=data, trainer=None), Forget()
    assert stage.surrogate(client) is data and stage.surrogate_is_identity() and stage.unknowns(3) is None
    assert stage.guessed(torch.ones(1, 1, 2), torch.ones(1, 1, 2), torch.zeros(1))[0].shape == (1, 1, 2)
    assert client.round == 0 and client.state == {}


def test_a_training_stage_has_no_noise_and_no_bound_unless_it_says_so() -> None:
    class Mean(TrainingStage):
        def aggregate(self, gradients, iteration, rng):  # type: ignore[no-untyped-def]
            return {name: rows.mean(0) for name, rows in gradients.items()}

        def surrogate(self, gradients, iteration):  # type: ignore[no-untyped-def]
            return self.aggregate(gradients, iteration, derive(0))

    assert Mean().step_noise_std(4) == 0.0 and Mean().example_bound() is None


@pytest.mark.parametrize(
    "kind", [DataStage, ModelStage, TrainingStage, NormStage, UpdateStage, ClientStage, ProtocolStage]
)
def test_a_kind_is_abstract(kind: type[Stage]) -> None:
    assert inspect.isabstract(kind)
    with pytest.raises(TypeError, match="abstract"):
        kind()


def test_the_six_kinds_of_the_docstring_are_the_kinds() -> None:
    listed = [line.split()[0] for line in (stages.__doc__ or "").splitlines() if line.startswith("    ")]
    assert listed == ["DataStage", "ModelStage", "TrainingStage", "UpdateStage", "ClientStage", "ProtocolStage"]
