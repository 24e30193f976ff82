"""Every defense of the catalogue keeps the contract of its kind in ``core.stage``; a new file is tested without an edit.
Here: what holds for all of them, and for those that see only the update. The others: ``test_defense_kinds.py``.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradleak.core.specs import Spec, parse_chain, spec_of
from gradleak.core.stage import UpdateStage
from gradleak.core.update import Update
from gradleak.harness.request import catalogue

SHAPES = {"table": (9, 4), "matrix": (5, 6), "vector": (7,), "stack": (2, 3, 4)}
LOCATE = Spec(type="clip", args={"max_norm": 1.0})


@pytest.fixture
def stage(update_spec: Spec) -> UpdateStage:
    """The defense as a channel binds it, behind a clip, so that those that inherit a norm have one."""
    return bound(update_spec)


def bound(spec: Spec) -> Any:
    behind = catalogue.find("defenses", spec.type).behind
    before = tuple(catalogue.make("defenses", each) for each in (parse_chain(behind) if behind else (LOCATE,)))
    return catalogue.make("defenses", spec).bind(before)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def update_of(seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Update:
    generator = rng(seed)
    tensors = {name: scale * torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    tensors["table"][2] = 0.0
    return Update(tensors)


def candidates(restarts: int, seed: int = 5) -> dict[str, Tensor]:
    generator = rng(seed)
    return {name: torch.randn(restarts, *shape, generator=generator) for name, shape in SHAPES.items()}


def same(left: Any, right: Any) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", catalogue.names("defenses"))
def test_says_what_it_is(name: str) -> None:
    cls = catalogue.find("defenses", name)
    assert cls.summary.endswith(".") and len(cls.summary) <= 120
    told = catalogue.explain("defenses", name)
    assert "Guarantees" in told["sections"]
    assert all(argument["meaning"] for argument in told["arguments"]), told["arguments"]
    assert inspect.getdoc(cls) and cls.__doc__.strip()


def test_spec_round_trips(any_spec: Spec) -> None:
    made = catalogue.make("defenses", any_spec)
    plain = spec_of(made).to_plain()
    assert catalogue.make("defenses", Spec(**plain)) == made
    assert parse_chain(str(spec_of(made))) == (spec_of(made),)
    assert spec_of(bound(any_spec)) == spec_of(made), "binding must not show in the specification"


def test_is_frozen(any_spec: Spec) -> None:
    stage = bound(any_spec)
    for field in dataclasses.fields(stage):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(stage, field.name, getattr(stage, field.name))
    assert type(stage).__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_rebinding_changes_nothing(stage: UpdateStage) -> None:
    again = stage.bind((catalogue.make("defenses", LOCATE),))
    assert same(again.apply(update_of(), rng()), stage.apply(update_of(), rng()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_keeps_names_shapes_and_dtypes(stage: UpdateStage, dtype: torch.dtype) -> None:
    update = update_of(dtype=dtype)
    released = stage.apply(update, rng())
    assert list(released) == list(update)
    for name, tensor in update.items():
        assert released[name].shape == tensor.shape and released[name].dtype == dtype, name


def test_changes_the_update_and_leaves_its_input_alone(stage: UpdateStage) -> None:
    update, untouched = update_of(), update_of()
    assert not same(stage.apply(update, rng()), untouched)
    assert same(update, untouched)


def test_draws_come_from_the_generator_alone(stage: UpdateStage) -> None:
    torch.manual_seed(1)
    first = stage.apply(update_of(), rng(3))
    torch.manual_seed(2)
    assert same(stage.apply(update_of(), rng(3)), first)


def test_randomness_is_declared_and_fresh(stage: UpdateStage) -> None:
    generator = rng()
    first, second = stage.apply(update_of(), generator), stage.apply(update_of(), generator)
    random = not same(first, second)
    if random and not all(stage.noise_std(tensor) > 0.0 for tensor in first.values()):
        # Randomness that is no noise must be there to be read in the release: then the simulation is exact at the truth.
        informed = stage.surrogate({name: tensor.unsqueeze(0) for name, tensor in update_of().items()}, first)
        assert distance({name: tensor[0] for name, tensor in informed.items()}, first) == 0.0
    if random:
        assert not any(torch.equal(first[name], second[name]) for name in first), "the same noise twice is subtractable"
    if stage.gaussian_multiplier():
        assert random and not bool((first["table"] == 0).any()), "zero rows must get noise too"


def test_noise_std_is_what_the_step_adds(stage: UpdateStage) -> None:
    """Where the stage adds an error of mean zero, its reader's estimate is within 10 % of the error's spread.

    40,000 Gaussian entries; the seed is fixed, so the outcome is too.
    """
    truth = Update({"wide": 0.1 * torch.randn(200, 200, generator=rng(9))})
    released = stage.apply(truth, rng(10))
    error = (released["wide"] - truth["wide"]).std()
    estimate = stage.noise_std(released["wide"])
    assert estimate == 0.0 or estimate == pytest.approx(float(error), rel=0.1)
    assert (estimate > 0.0) == stage.surrogate_is_identity()


def test_surrogate_is_differentiable_and_finite(stage: UpdateStage) -> None:
    released = stage.apply(update_of(), rng())
    start = {name: tensor.requires_grad_() for name, tensor in candidates(3).items()}
    simulated = stage.surrogate(start, released)
    assert simulated.keys() == start.keys()
    assert all(simulated[name].shape == start[name].shape for name in start)
    slopes = torch.autograd.grad(
        sum(t.square().sum() for t in simulated.values()), list(start.values()), create_graph=True
    )
    curvature = torch.autograd.grad(sum(s.square().sum() for s in slopes), list(start.values()), allow_unused=True)
    assert all(bool(torch.isfinite(s).all()) for s in (*simulated.values(), *slopes))
    assert all(bool(torch.isfinite(c).all()) for c in curvature if c is not None)
    assert any(bool((s != 0).any()) for s in slopes)


def test_surrogate_is_finite_at_zero(stage: UpdateStage) -> None:
    released = stage.apply(update_of(), rng())
    start = {name: torch.zeros(2, *shape, requires_grad=True) for name, shape in SHAPES.items()}
    simulated = stage.surrogate(start, released)
    slopes = torch.autograd.grad(sum(t.square().sum() + t.sum() for t in simulated.values()), list(start.values()))
    assert all(bool(torch.isfinite(t).all()) for t in (*simulated.values(), *slopes))


def test_surrogate_is_the_identity_where_it_says_so(stage: UpdateStage) -> None:
    released = stage.apply(update_of(), rng())
    start = candidates(2)
    assert same(stage.surrogate(start, released), start) == stage.surrogate_is_identity()


def test_restarts_do_not_interact_in_the_surrogate(stage: UpdateStage) -> None:
    released = stage.apply(update_of(), rng())
    together = candidates(4)
    simulated = stage.surrogate(together, released)
    for restart in range(4):
        alone = stage.surrogate({name: t[restart : restart + 1] for name, t in together.items()}, released)
        for name, tensor in alone.items():
            torch.testing.assert_close(simulated[name][restart], tensor[0], rtol=1e-6, atol=1e-7)


def test_knowing_the_stage_is_no_disadvantage(stage: UpdateStage) -> None:
    """At the truth, the informed simulation is at least as close to the release as the plain update is."""
    truth = update_of(seed=4)
    released = stage.apply(truth, rng())
    informed = stage.surrogate({name: tensor.unsqueeze(0) for name, tensor in truth.items()}, released)
    assert distance({name: t[0] for name, t in informed.items()}, released) <= distance(truth, released)


def distance(left: Any, right: Any) -> float:
    return math.sqrt(sum(float((left[name] - right[name]).square().sum()) for name in right))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([0.0, 1e-6, 1e-3, 1.0, 30.0, 1e3]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_norm_claims_hold(update_spec: Spec, seed: int, scale: float, dtype: torch.dtype) -> None:
    stage = bound(update_spec)
    update = update_of(seed, dtype, scale)
    released = stage.apply(update, rng(seed)).norm()
    limit = stage.norm_bound()
    assert limit is None or released <= limit
    assert not stage.preserves_norm_bound() or released <= update.norm()
