"""A defense that describes itself to the accountant does what it says: the noise it adds, in units of the most that one record (or
one client) can change, is measured and held against the description. A new file is tested without an edit.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.specs import Spec
from gradleak.core.stage import Client, ClientStage, Run, Stage, TrainingStage
from gradleak.core.update import Update
from gradleak.harness.request import catalogue
from gradleak.mechanics.client import clipping
from gradleak.privacy.claim import claim, plans_of
from gradleak.privacy.plan.views import refusal

SHAPES = {"table": (200, 30), "matrix": (60, 50), "vector": (1000,)}
ENTRIES = sum(math.prod(shape) for shape in SHAPES.values())
RECORDS = 6
LOUD = 1e6
"""Length of the record that tries to break the bound."""


def rows(seed: int, *, loud: bool) -> dict[str, torch.Tensor]:
    """Gradients of the neighbors: the last record is zero, or far longer than any clip in every tensor."""
    rng = torch.Generator().manual_seed(seed)
    found = {
        name: torch.randn(RECORDS, *shape, generator=rng, dtype=torch.float64) / math.sqrt(math.prod(shape))
        for name, shape in SHAPES.items()
    }
    for tensor in found.values():
        tensor[-1] *= LOUD if loud else 0.0
    return found


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors.values()))


def release(stage: Stage, given: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    if isinstance(stage, TrainingStage):
        return stage.aggregate(given, 0, rng)
    assert isinstance(stage, ClientStage)
    batch = Batch(inputs=torch.ones(1, 2).long(), mask=torch.ones(1, 2).bool(), labels=torch.zeros(1).long())
    client = Client(batch=batch, data=None, trainer=None)  # type: ignore[arg-type]
    update, _ = stage.apply(Update({name: tensor[-1] for name, tensor in given.items()}), client, rng)
    return dict(update)


def measured_multiplier(spec: Spec) -> float:
    """Standard deviation of the noise over the largest change that the last record makes, both as they come out."""
    names = {f.name for f in dataclasses.fields(catalogue.find("defenses", spec.type))}
    still = {"sampling_rate": 1.0} if "sampling_rate" in names else {}
    noisy = catalogue.make("defenses", Spec(type=spec.type, args={**spec.args, **still}))
    quiet = catalogue.make("defenses", Spec(type=spec.type, args={**spec.args, **still, "noise_multiplier": 0.0}))
    loud, silent = (release(quiet, rows(0, loud=each), 1) for each in (True, False))
    change = norm({name: loud[name] - silent[name] for name in loud})
    with_noise = release(noisy, rows(0, loud=False), 2)
    return norm({name: with_noise[name] - silent[name] for name in silent}) / math.sqrt(ENTRIES) / change


def described(spec: Spec) -> dict[str, Any] | None:
    stage = catalogue.make("defenses", spec)
    found = stage.describe(Run(tensors=len(SHAPES)))
    return None if found is None else dict(found)


def claimed_multiplier(plan: dict[str, Any]) -> float:
    z = plan["noise_multiplier"] if "noise_multiplier" in plan else plan["noise_multipliers"][0]
    return z / math.sqrt(plan.get("tensors", 1))


def holds(spec: Spec) -> bool:
    """True if the stage adds the noise that its description says, to four standard deviations of the measurement."""
    plan = described(spec)
    assert plan is not None
    measured = measured_multiplier(spec)
    return abs(measured / claimed_multiplier(plan) - 1.0) <= 4.0 / math.sqrt(2 * ENTRIES) + 1e-4


def test_a_description_is_what_runs(any_spec: Spec) -> None:
    plan = described(any_spec)
    if plan is None:
        assert claim((catalogue.make("defenses", any_spec),))["epsilon"] is None
        return
    (made,) = plans_of((catalogue.make("defenses", any_spec),), run=Run(tensors=len(SHAPES)))
    if refusal(made) is None:
        assert holds(any_spec)
    else:
        found = claim((catalogue.make("defenses", any_spec),), run=Run(tensors=len(SHAPES)))
        assert found["epsilon"] is None and found["statement"].startswith("no guarantee: ")


SOUND = (
    Spec(type="dpsgd", args={"max_norm": 0.3, "noise_multiplier": 0.7}),
    Spec(type="fed_cdp", args={"max_norm": 0.3, "noise_multiplier": 0.7, "scope": "tensor"}),
    Spec(type="fed_sdp", args={"max_norm": 0.3, "noise_multiplier": 0.7}),
)


def _too_long(self: Any, given: Any) -> dict[str, torch.Tensor]:
    return dict(given)


def _too_quiet(like: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return 0.9 * torch.randn(like.shape, generator=rng, dtype=like.dtype)


def _not_the_table(like: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=rng, dtype=like.dtype) * (like.shape != SHAPES["table"])


@pytest.mark.parametrize("spec", SOUND, ids=str)
def test_the_check_can_fail(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipping forgotten, noise times 0.9, the token table without noise: each is seen."""
    assert holds(spec)
    for owner, name, fault in (
        (clipping.ClipExample, "__call__", _too_long),
        (clipping.ClipTensor, "__call__", _too_long),
        (clipping, "_noise", _too_quiet),
        (clipping, "_noise", _not_the_table),
    ):
        if owner is clipping.ClipExample and spec.args.get("scope") == "tensor":
            continue
        if owner is clipping.ClipTensor and spec.args.get("scope") != "tensor":
            continue
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fault)
            assert not holds(spec)
    assert holds(spec)
