"""Every lint fires on a plan that has its fault, and is silent on the nearest plan that has not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradleak.privacy.lint import LINTS, Finding, lint
from gradleak.privacy.plan.file import make_plan, read_plan

pytestmark = pytest.mark.contract

GOOD: dict[str, Any] = {
    "noise_multiplier": 1.0,
    "steps": 1000,
    "sampling": "poisson",
    "sampling_rate": 0.01,
    "sampled": "records",
    "records": 10_000,
    "claimed": {
        "accountant": "rdp",
        "epsilon": 2.11,
        "steps": 1000,
        "sampling": "poisson",
        "relation": "add_or_remove",
        "unit": "record",
        "view": "final_model",
    },
}
ONE: dict[str, Any] = {"noise_multiplier": 0.5}


def findings(base: dict[str, Any], **changes: Any) -> dict[str, Finding]:
    claimed = {**base.get("claimed", {}), **changes.pop("claimed", {})}
    table = {**base, **changes}
    if claimed:
        table["claimed"] = claimed
    return {finding.code: finding for finding in lint(make_plan(table))}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # code: base, what triggers it, the nearest that does not
    "noise-without-clip": (ONE, {"clip": "none"}, {"clip": "update"}),
    "data-dependent-clip": (ONE, {"clip": "data"}, {"clip": "example"}),
    "clip-per-tensor": (ONE, {"clip": "tensor", "tensors": 12}, {"clip": "tensor", "tensors": 1}),
    "clip-per-batch": (ONE, {"clip": "batch"}, {"clip": "example"}),
    "batch-statistics": (ONE, {"normalization": "batch"}, {"normalization": "batch", "clip": "update"}),
    "unnoised-parameters": (ONE, {"unnoised": ["wte.weight"]}, {"unnoised": []}),
    "reused-seed": (ONE, {"noise_seed": "reused", "steps": 2}, {"noise_seed": "reused", "steps": 1}),
    "random-divisor": (GOOD, {"divisor": "actual"}, {"divisor": "expected"}),
    "server-adds-noise": (
        GOOD,
        {"noise_by": "server", "view": "server_sees_each_update"},
        {"noise_by": "server", "view": "final_model"},
    ),
    "laplace-sum": (
        {"mechanism": "laplace", "noise_multiplier": 1.0, "view": "secure_aggregation"},
        {"clients": 100},
        {"clients": 1},
    ),
    "sampling-hides-nothing": (
        GOOD,
        {"clip": "update", "view": "server_sees_each_update", "sampled": "records"},
        {"clip": "update", "sampled": "clients"},
    ),
    "sampled-not-said": (
        {"noise_multiplier": 1.0, "steps": 100, "sampling_rate": 0.01, "unit": "user", "records_per_user": 4},
        {},
        {"sampled": "records"},
    ),
    "classical-gaussian": (
        {"noise_multiplier": 0.45},
        {"claimed": {"accountant": "classical"}},
        {"noise_multiplier": 5.0, "claimed": {"accountant": "classical"}},
    ),
    "central-limit": (GOOD, {"claimed": {"accountant": "gdp_clt"}}, {"claimed": {"accountant": "prv"}}),
    "missing-composition": (GOOD, {"claimed": {"steps": 1}}, {"claimed": {"steps": 1000}}),
    "empty-history": (GOOD, {"claimed": {"steps": 0}}, {"claimed": {"steps": 1000}}),
    # 60,000 records in batches of 256: 235 batches with the last one, 234 without; a rate of 1/235 is too low.
    "rate-too-low": (
        GOOD,
        {"sampling_rate": 256 / 60_000, "claimed": {"sampling_rate": 1 / 235}},
        {"sampling_rate": 256 / 60_000, "claimed": {"sampling_rate": 1 / 234}},
    ),
    "wrong-relation": (GOOD, {"relation": "replace_one"}, {"relation": "zero_out"}),
    "shuffled-as-poisson": (GOOD, {"sampling": "shuffle"}, {"sampling": "poisson"}),
    "fixed-size-as-poisson": (
        GOOD,
        {"sampling": "fixed"},
        {"sampling": "fixed", "claimed": {"sampling": "fixed"}},
    ),
    "wrong-view": (
        GOOD,
        {"view": "server_sees_each_update", "sampled": "clients", "clip": "update"},
        {"view": "server_sees_each_update", "sampled": "records"},
    ),
    "record-for-user": (GOOD, {"unit": "user", "records_per_user": 4}, {"unit": "user", "records_per_user": 1}),
    "loose-delta": (GOOD, {"delta": 1e-3}, {"delta": 1e-6}),
    "delta-without-records": (ONE, {"delta": 0.1}, {"delta": 0.1, "records": 5}),
    "claim-too-low": (GOOD, {"claimed": {"epsilon": 1.0}}, {"claimed": {"epsilon": 1.83}}),
}


def test_every_lint_has_a_case() -> None:
    """A lint without a case would be silent for ever; the codes come from running them."""
    fired = {code for base, bad, _ in CASES.values() for code in findings(base, **bad)}
    assert set(CASES) <= fired
    assert list(CASES) == [check.code for check in LINTS]


@pytest.mark.parametrize("code", CASES)
def test_fires(code: str) -> None:
    base, bad, _ = CASES[code]
    found = findings(base, **bad)[code]
    assert found.message.endswith(".") and found.remedy.endswith(".")
    assert len(found.message) > 30


@pytest.mark.parametrize("code", CASES)
def test_is_silent_next_to_it(code: str) -> None:
    base, _, good = CASES[code]
    assert code not in findings(base, **good)


def test_a_sound_plan_has_no_finding() -> None:
    assert findings(GOOD) == {}


def test_a_false_classical_claim_is_an_error_and_a_wasteful_one_a_warning() -> None:
    """At δ = 1e-5 the classical formula stops being a bound near ε = 8.4; below it only wastes noise."""
    wasteful = findings({"noise_multiplier": 1.0}, claimed={"accountant": "classical"})["classical-gaussian"]
    false = findings({"noise_multiplier": 0.5}, claimed={"accountant": "classical"})["classical-gaussian"]
    assert wasteful.severity == "warning" and false.severity == "error"
    assert "9.69" in false.message and "9.997" in false.message


def test_the_shuffle_lint_prints_both_numbers() -> None:
    table = {**GOOD, "noise_multiplier": 0.8, "steps": 10_000, "sampling": "shuffle", "sampling_rate": 1e-4}
    message = findings(table)["shuffled-as-poisson"].message
    assert "0.062" in message and "3.836" in message


def test_a_looser_relation_is_only_a_warning() -> None:
    found = findings({**ONE, "claimed": {"relation": "replace_one"}})["wrong-relation"]
    assert found.severity == "warning"


def test_a_claim_about_a_plan_without_guarantee_is_false() -> None:
    assert findings(ONE, clip="data", claimed={"epsilon": 100.0})["claim-too-low"].message.count("no guarantee") == 1


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("opacus_default", {}),
        ("opacus_without_poisson", {"shuffled-as-poisson": "error"}),
        ("flower_local_dp", {"classical-gaussian": "error", "missing-composition": "error", "claim-too-low": "error"}),
        ("flower_fl_dp_sa", {"server-adds-noise": "error"}),
        ("flower_opacus", {"missing-composition": "error"}),
        ("tensorflow_privacy_mnist", {"shuffled-as-poisson": "error"}),
        ("tensorflow_privacy_mnist_keras", {"shuffled-as-poisson": "warning"}),
    ],
)
def test_settings_of_public_frameworks(name: str, codes: dict[str, str]) -> None:
    """The plans that the docs show; the sources of their settings are cited in the files."""
    file = Path(__file__).parents[2] / "benchmarks" / "privacy" / "plans" / f"{name}.toml"
    assert {finding.code: finding.severity for finding in lint(make_plan(read_plan(file)))} == codes


def test_every_plan_of_the_benchmark_has_a_case() -> None:
    shipped = {file.stem for file in (Path(__file__).parents[2] / "benchmarks" / "privacy" / "plans").glob("*.toml")}
    mark = next(m for m in test_settings_of_public_frameworks.pytestmark if m.name == "parametrize")
    assert shipped == {name for name, _ in mark.args[1]}
