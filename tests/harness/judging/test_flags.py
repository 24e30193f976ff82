"""Every flag is raised where its definition says so, and not where it does not; the docs list the same flags."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from gradleak.core.attack import Status
from gradleak.core.errors import UsageError
from gradleak.core.record import Record
from gradleak.harness.judging.flags import Evidence, Flag, compute_flags, cross_flags

pytestmark = pytest.mark.contract

DOCS = Path(__file__).parents[3] / "docs" / "flags.md"

CLEAN = Evidence(
    status=Status.CONVERGED,
    objective=1e-3,
    objective_at_truth=1e-3,
    objective_at_start=2.0,
    exact=True,
    stages=("clip", "gaussian"),
    adapted=("clip", "gaussian"),
    known=frozenset({"subject", "trainer", "stages", "labels"}),
    declared=frozenset({"subject", "trainer", "stages", "mask"}),
    update_norm=0.5,
    number_format="float32",
    epsilon=8.0,
    scores={"token_recall": 1.0, "psnr": 42.0},
)


def test_a_clean_cell_has_no_flag() -> None:
    assert compute_flags(CLEAN) == []


RAISED: list[tuple[Flag, dict[str, Any]]] = [
    (Flag.OPTIMIZER_FAILED, {"objective": 2e-3, "exact": False}),
    (Flag.OPTIMIZER_FAILED, {"status": Status.DIVERGED, "objective": None, "exact": False}),
    (Flag.AMBIGUOUS, {"exact": False}),
    (Flag.AMBIGUOUS, {"exact": False, "objective": 1e-4}),
    (Flag.AMBIGUOUS, {"exact": False, "objective": 1e-3 * (1 + 5e-4)}),
    (Flag.AMBIGUOUS, {"exact": False, "objective": 1e-7, "objective_at_truth": 1e-12}),
    (Flag.NON_ADAPTIVE, {"adapted": ("clip",)}),
    (Flag.NON_ADAPTIVE, {"adapted": ()}),
    (Flag.ORACLE_KNOWLEDGE, {"declared": frozenset({"labels"})}),
    (Flag.ORACLE_KNOWLEDGE, {"known": frozenset({"mask"})}),
    (Flag.ZERO_GRADIENT, {"update_norm": 0.0}),
    (Flag.ZERO_GRADIENT, {"update_norm": 6e-5, "number_format": "fp16"}),
    (Flag.NO_DP_CLAIM, {"epsilon": None}),
    (Flag.NO_DP_CLAIM, {"epsilon": None, "stages": (), "adapted": ()}),
    (Flag.SATURATED_METRIC, {"scores": {"psnr": 100.0}}),
]


@pytest.mark.parametrize(("flag", "change"), RAISED, ids=lambda value: value.name if isinstance(value, Flag) else None)
def test_a_flag_is_raised_alone(flag: Flag, change: dict[str, Any]) -> None:
    assert compute_flags(dataclasses.replace(CLEAN, **change)) == [flag.name]


NOT_RAISED: list[tuple[Flag, dict[str, Any]]] = [
    (Flag.OPTIMIZER_FAILED, {"objective": 2e-3}),
    (Flag.OPTIMIZER_FAILED, {"objective": 2e-3, "objective_at_truth": None, "exact": False}),
    (Flag.OPTIMIZER_FAILED, {"objective": None, "exact": False}),
    (Flag.OPTIMIZER_FAILED, {"objective": 1e-3, "objective_at_truth": 2e-3, "exact": False}),
    (Flag.AMBIGUOUS, {"objective": 2e-3, "exact": False}),
    (Flag.AMBIGUOUS, {"objective": 1e-7, "objective_at_truth": 1e-12, "objective_at_start": None, "exact": False}),
    (Flag.NON_ADAPTIVE, {"stages": (), "adapted": ()}),
    (Flag.NON_ADAPTIVE, {"stages": ("clip",), "adapted": ("clip", "prune")}),
    (Flag.ORACLE_KNOWLEDGE, {"known": frozenset({"subject", "trainer"})}),
    (Flag.ZERO_GRADIENT, {"update_norm": 6e-5}),
    (Flag.ZERO_GRADIENT, {"update_norm": 7e-5, "number_format": "fp16"}),
    (Flag.ZERO_GRADIENT, {"update_norm": 6e-5, "number_format": "bf16"}),
    (Flag.NO_DP_CLAIM, {"epsilon": 1e6}),
    (Flag.SATURATED_METRIC, {"scores": {"psnr": 99.9, "token_recall": 1.0}}),
]


@pytest.mark.parametrize(
    ("flag", "change"), NOT_RAISED, ids=lambda value: value.name if isinstance(value, Flag) else None
)
def test_a_flag_is_not_raised_beside_its_definition(flag: Flag, change: dict[str, Any]) -> None:
    assert flag.name not in compute_flags(dataclasses.replace(CLEAN, **change))


def test_every_flag_of_one_cell_is_tested_both_ways() -> None:
    own = set(Flag) - {Flag.WEAKER_ATTACK_WON}
    assert {flag for flag, _ in RAISED} == own
    assert {flag for flag, _ in NOT_RAISED} == own


def test_an_attack_that_does_not_apply_keeps_only_the_flags_of_the_release() -> None:
    hopeless = dataclasses.replace(
        CLEAN,
        status=Status.NOT_APPLICABLE,
        objective=2e-3,
        exact=False,
        adapted=(),
        declared=frozenset({"labels"}),
        update_norm=0.0,
        epsilon=None,
        scores={},
    )
    assert compute_flags(hopeless) == ["ZERO_GRADIENT", "NO_DP_CLAIM"]


def test_an_unknown_number_format_is_refused() -> None:
    with pytest.raises(UsageError, match="Known: float32, bf16, fp16"):
        dataclasses.replace(CLEAN, number_format="int4")


DECLARED = {
    "weak": frozenset({"subject"}),
    "strong": frozenset({"subject", "trainer", "labels"}),
    "other": frozenset({"subject", "stages"}),
}
BEST = {"token_recall": 1.0, "exact_match": 1.0, "identification_rank": 1.0}
FACTS = ("subject", "trainer", "stages", "labels")


def record(attack: str, recall: float | None, *, baseline: float = 0.1, cell: str = "", **changes: Any) -> Record:
    def scores(value: float | None) -> dict[str, dict[str, Any]]:
        return {} if value is None else {"token_recall": {"value": value}, "exact_match": {"value": 0.0}}

    fields: dict[str, Any] = {
        "cell": cell or attack,
        "scenario": {"modality": "text", "model": "m"},
        "attack": {"type": attack, "args": {}},
        "defenses": [],
        "knowledge": {"threat": "t", "facts": list(FACTS)},
        "seed": 0,
        "repeat": 0,
        "status": {},
        "scores": scores(recall),
        "baseline": scores(baseline),
        "flags": [],
        "privacy": {},
        "environment": {},
        "seconds": {},
    }
    return Record(**{**fields, **changes})


def crossed(*records: Record) -> dict[str, list[str]]:
    return cross_flags(records, declared=DECLARED, best=BEST)


def test_weaker_attack_won_is_raised_for_the_beaten_attack_only() -> None:
    found = crossed(record("weak", 0.9), record("strong", 0.5), record("other", 0.2))
    assert found == {"weak": [], "strong": ["WEAKER_ATTACK_WON"], "other": ["WEAKER_ATTACK_WON"]}


@pytest.mark.parametrize(
    "rival",
    [
        record("weak", 0.5),
        record("weak", 0.4),
        record("weak", None),
        record("other", 0.9),
        record("strong", 0.9, cell="same facts"),
        record("not installed", 0.9),
        record("weak", 0.9, repeat=1),
        record("weak", 0.9, seed=1),
        record("weak", 0.9, defenses=[{"type": "sign", "args": {}}]),
        record("weak", 0.9, scenario={"modality": "text", "model": "n"}),
    ],
    ids=[
        "equal",
        "lower",
        "no score",
        "not a subset",
        "equal facts",
        "unknown facts",
        "repeat",
        "seed",
        "defense",
        "scenario",
    ],
)
def test_weaker_attack_won_is_not_raised(rival: Record) -> None:
    assert crossed(record("strong", 0.5), rival)["strong"] == []


def test_facts_that_the_adversary_lacks_do_not_make_an_attack_stronger() -> None:
    poor = {"threat": "eavesdropper", "facts": ["subject"]}
    assert crossed(record("weak", 0.9, knowledge=poor), record("strong", 0.5, knowledge=poor))["strong"] == []
    found = crossed(record("strong", 0.9, knowledge=poor, cell="poor"), record("strong", 0.5, cell="rich"))
    assert found == {"poor": [], "rich": ["WEAKER_ATTACK_WON"]}


def test_saturated_metric_is_raised_where_attacks_and_baseline_are_all_perfect() -> None:
    found = crossed(record("weak", 1.0, baseline=1.0), record("strong", 1.0, baseline=1.0), record("other", None))
    assert found == {key: ["SATURATED_METRIC"] for key in ["weak", "strong", "other"]}


@pytest.mark.parametrize(
    ("recall", "other", "baseline"), [(1.0, 1.0, 0.9), (1.0, 0.9, 1.0), (0.0, 0.0, 0.0), (None, None, 1.0)]
)
def test_saturated_metric_is_not_raised(recall: float | None, other: float | None, baseline: float) -> None:
    found = crossed(record("weak", recall, baseline=baseline), record("strong", other, baseline=baseline))
    assert all("SATURATED_METRIC" not in flags for flags in found.values())


def test_the_catalogue_supplies_facts_and_best_values() -> None:
    found = cross_flags([record("not installed", 1.0, baseline=1.0)])
    assert found == {"not installed": ["SATURATED_METRIC"]}


def test_docs_and_code_list_the_same_flags() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+) \| (.+) \|$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [name for name, _, _ in rows] == [flag.name for flag in Flag]
    assert all(computed.strip() and advice.strip() for _, computed, advice in rows)


def test_every_flag_has_one_sentence() -> None:
    for flag in Flag:
        assert flag.value.endswith(".")
        assert ". " not in flag.value
