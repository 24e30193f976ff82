"""Every way to write a method wrongly raises before any work, and the message names cause and remedy."""

from __future__ import annotations

import pytest
import torch

from gradleak.core.errors import SpecError, UnknownNameError, UsageError
from gradleak.core.specs import Spec
from gradleak.core.update import Update
from gradleak.defenses.gaussian import Gaussian
from gradleak.harness.request import catalogue
from gradleak.privacy.accounting import gaussian as curve
from gradleak.privacy.claim import claim

pytestmark = pytest.mark.errors


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "Cannot read '' at character 1"),
        ("clip(max_norm=1.0", "at character 5"),
        ("clip(max_norm=1.0)gaussian(std=1)", "at character 19"),
        ("clip(max_norm=1.0)+", "at character 20"),
        ("clip(max_norm=1.0),gaussian(std=1)", "at character 19"),
        ("1clip()", "at character 1"),
        ("clip(1.0)", "key=value"),
        ("clip(max_norm=)", "key=value"),
        ("clip(=1.0)", "key=value"),
        ("clip(max_norm=1, max_norm=2)", "given twice"),
        ("clip()", "missing argument 'max_norm'"),
        ("clip(norm=1.0)", "It takes: max_norm"),
        ("clip(max_norm=big)", "must be of type float"),
        ("clip(max_norm=true)", "must be of type float"),
        ("clip(max_norm=none)", "must be of type float"),
        ("clip(max_norm=0)", "positive"),
        ("clip(max_norm=-1)", "positive"),
        ("clip(max_norm=inf)", "finite"),
        ("clip(max_norm=nan)", "finite"),
        ("gaussian()", "exactly one of std, relative_std, noise_multiplier; got none"),
        ("gaussian(std=1, relative_std=1)", "got std, relative_std"),
        ("gaussian(std=-1)", "at least 0"),
        ("gaussian(relative_std=nan)", "at least 0"),
        ("gaussian(noise_multiplier=1)", "clip(max_norm=1.0)+gaussian"),
        ("gaussian(noise_multiplier=1)+clip(max_norm=1)", "there is none"),
        ("clip(max_norm=1)+sign()+gaussian(noise_multiplier=1)", "does not hold after sign"),
        ("clip(max_norm=1)+quantize(dtype=bf16)+laplace(scale=1)+gaussian(noise_multiplier=1)", "quantize, laplace"),
        ("laplace(scale=-0.1)", "at least 0"),
        ("laplace(scale=inf)", "at least 0"),
        ("prune(fraction=1.0)", "in [0, 1)"),
        ("prune(fraction=-0.1)", "in [0, 1)"),
        ("prune(fraction=0.5, scope=layer)", "global or tensor"),
        ("sign(scale=1)", "no arguments"),
        ("quantize(dtype=int4)", "bf16, fp16 or int8"),
        ("quantize(dtype=8)", "must be of type"),
    ],
)
def test_malformed_defenses(text: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        catalogue.make_stages(text)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "near"),
    [("clp(max_norm=1)", "clip"), ("Gaussian(std=1)", "gaussian"), ("quantise(dtype=bf16)", "quantize")],
)
def test_unknown_defense_names_the_nearest(text: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{near}'"):
        catalogue.make_stages(text)


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match="Unknown attack"):
        catalogue.make_attacks("no_such_attack")
    with pytest.raises(UnknownNameError, match=r"Unknown kind 'attack'\. Did you mean 'attacks'"):
        catalogue.names("attack")
    with pytest.raises(UnknownNameError, match="Did you mean 'honest_server'"):
        catalogue.make("threats", Spec(type="honest_sever"))
    with pytest.raises(UnknownNameError, match="Did you mean 'gaussian'"):
        catalogue.explain(None, "gausian")
    with pytest.raises(UsageError, match="set of facts"):
        catalogue.find("threats", "honest_server")


@pytest.mark.parametrize(("kind", "name"), [("threats", "honest_server"), ("metrics", "token_recall")])
def test_what_takes_no_arguments_refuses_them(kind: str, name: str) -> None:
    with pytest.raises(SpecError, match=f"{name}: unknown argument 'x'"):
        catalogue.make(kind, Spec(type=name, args={"x": 1}))


def test_unbound_noise_multiplier_is_refused_when_used() -> None:
    stage = Gaussian(noise_multiplier=1.0)
    with pytest.raises(SpecError, match="has not been bound"):
        stage.apply(Update({"a": torch.ones(2)}), torch.Generator())
    with pytest.raises(SpecError, match="has not been bound"):
        stage.noise_std(torch.ones(2))


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, float("nan")])
def test_delta_out_of_range(delta: float) -> None:
    with pytest.raises(UsageError, match="delta="):
        claim((), delta=delta)


@pytest.mark.parametrize(("noise_multiplier", "epsilon"), [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (1.0, -1.0)])
def test_curve_arguments_out_of_range(noise_multiplier: float, epsilon: float) -> None:
    with pytest.raises(UsageError, match="out of range"):
        curve.delta(noise_multiplier, epsilon)


def test_negative_noise_has_no_epsilon() -> None:
    with pytest.raises(UsageError, match="noise_multiplier="):
        curve.epsilon(-1.0, 1e-5)
