"""Each ``Guarantees`` bullet of ``gaussian``, and what its three forms mean."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from gradleak.core.channel import Channel
from gradleak.core.specs import spec_of
from gradleak.core.stage import Stage
from gradleak.core.update import Update
from gradleak.harness.request.catalogue import make_stages

pytestmark = pytest.mark.contract

SIZE = 40_000


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def update() -> Update:
    generator = rng(1)
    return Update(
        {"wide": 3.0 * torch.randn(SIZE, generator=generator), "narrow": 0.01 * torch.randn(SIZE, generator=generator)}
    )


def noise(stages: tuple[Stage, ...], seed: int = 2) -> dict[str, torch.Tensor]:
    """What the last stage adds to what the earlier ones release."""
    before = update()
    for stage in stages[:-1]:
        before = stage.apply(before, rng())
    after = stages[-1].apply(before, rng(seed))
    return {name: after[name].double() - before[name].double() for name in before}


def assert_gaussian(sample: torch.Tensor, std: float) -> None:
    """Kolmogorov-Smirnov at level 1e-4 against N(0, std²); the seed is fixed."""
    assert stats.kstest(sample.numpy() / std, "norm").pvalue > 1e-4


def test_std_is_absolute() -> None:
    for sample in noise(make_stages("gaussian(std=0.2)")).values():
        assert_gaussian(sample, 0.2)


def test_relative_std_is_in_units_of_each_tensors_rms() -> None:
    found = noise(make_stages("gaussian(relative_std=0.5)"))
    for name, tensor in update().items():
        assert_gaussian(found[name], 0.5 * math.sqrt(float(tensor.double().square().mean())))


def test_noise_multiplier_is_in_units_of_the_clip() -> None:
    stages = make_stages("clip(max_norm=3.0)+gaussian(noise_multiplier=0.5)")
    for sample in noise(stages).values():
        assert_gaussian(sample, 1.5)
    assert stages[1].noise_std(torch.ones(2)) == 1.5
    assert stages[1].gaussian_multiplier() == 0.5


def test_the_latest_clip_counts() -> None:
    stages = make_stages("clip(max_norm=9.0)+clip(max_norm=2.0)+prune(fraction=0.5)+gaussian(noise_multiplier=0.5)")
    assert stages[-1].noise_std(torch.ones(2)) == 1.0


def test_binding_works_in_a_channel_and_is_repeatable() -> None:
    class Nothing:
        def update(self, batch: object, rng: torch.Generator) -> Update:
            raise AssertionError("not trained here")

    once = Channel(trainer=Nothing(), stages=make_stages("clip(max_norm=3.0)+gaussian(noise_multiplier=0.5)"))
    twice = Channel(trainer=Nothing(), stages=once.stages)
    assert twice.stages[1].noise_std(torch.ones(2)) == 1.5
    assert spec_of(twice.stages[1]).args == {"std": None, "relative_std": None, "noise_multiplier": 0.5}


def test_tensors_get_different_noise_and_zero_rows_get_some() -> None:
    released = make_stages("gaussian(std=1.0)")[0].apply(
        Update({"a": torch.zeros(4, 4), "b": torch.zeros(4, 4)}), rng()
    )
    assert not torch.equal(released["a"], released["b"])
    assert bool((released["a"] != 0).all())


def test_no_noise_is_no_change() -> None:
    for spec in ("gaussian(std=0)", "gaussian(relative_std=0)", "clip(max_norm=1e9)+gaussian(noise_multiplier=0)"):
        released = update()
        for stage in make_stages(spec):
            released = stage.apply(released, rng())
        assert all(torch.equal(released[name], tensor) for name, tensor in update().items())


def test_reader_estimates_the_relative_noise_from_the_release() -> None:
    stage = make_stages("gaussian(relative_std=2.0)")[0]
    released = stage.apply(update(), rng())
    for name, tensor in update().items():
        truth = 2.0 * math.sqrt(float(tensor.square().mean()))
        assert stage.noise_std(released[name]) == pytest.approx(truth, rel=0.02)


def test_only_the_multiplier_form_is_certified() -> None:
    assert make_stages("gaussian(std=1.0)")[0].gaussian_multiplier() is None
    assert make_stages("gaussian(relative_std=1.0)")[0].gaussian_multiplier() is None
