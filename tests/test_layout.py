"""Tests mirror the source: whoever changes a module finds its tests at the same path."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE, TESTS = ROOT / "src" / "gradleak", ROOT / "tests"
ACROSS = ("agreement", "benchmarks", "conformance", "docs", "support")
"""Folders of tests that are about several modules, or about what is not source."""
KINDS = ("oracle", "property", "contract", "errors")
REGISTRIES = frozenset({"attacks", "defenses", "metrics", "clients"})
MOST = 14
"""Modules of a folder, registries of methods excepted: what can be taken in at one glance."""
LONG = 60
"""Lines above which a module has tests of its own; shorter ones may be tested through those that use them."""

KNOWN_GAPS: frozenset[str] = frozenset(
    {
        "__init__.py",
        "api/account.py",
        "api/attack.py",
        "api/bound.py",
        "api/capture.py",
        "api/predict.py",
        "attacks/adapter_bag/bag.py",
        "attacks/adapter_bag/token_weights.py",
        "attacks/adapter_bag/whitening.py",
        "attacks/identification/likelihood.py",
        "attacks/patch_batch/__init__.py",
        "attacks/patch_batch/one_record.py",
        "attacks/patch_batch/peeling.py",
        "attacks/patch_batch/polish.py",
        "attacks/patch_batch/reading.py",
        "attacks/patch_exact/__init__.py",
        "attacks/patch_exact/noise.py",
        "attacks/patch_exact/reading.py",
        "attacks/token_span.py",
        "attacks/token_support.py",
        "cli/common/options.py",
        "cli/common/account_tables.py",
        "cli/verbs/audit_bounds.py",
        "harness/bounds/attacks.py",
        "harness/bounds/candidate_lists.py",
        "harness/bounds/chain.py",
        "harness/bounds/release.py",
        "harness/bounds/store.py",
        "harness/captured/attack.py",
        "harness/captured/decay.py",
        "harness/captured/files.py",
        "harness/captured/folder.py",
        "harness/captured/kinds.py",
        "harness/captured/loading.py",
        "harness/captured/names.py",
        "harness/captured/numbers.py",
        "harness/captured/tensors.py",
        "harness/doctor.py",
        "harness/influence.py",
        "harness/predict.py",
        "harness/request/batches.py",
        "harness/request/images.py",
        "harness/request/prepare.py",
        "harness/request/sources.py",
        "harness/running/cell.py",
        "harness/utility/frontier.py",
        "matching/engine.py",
        "matching/problem.py",
        "matching/replay.py",
        "mechanics/patches/first_tokens.py",
        "mechanics/patches/map_replay.py",
        "mechanics/patches/passes.py",
        "models/anatomy.py",
        "models/calling.py",
        "models/loading/checkpoints.py",
        "models/loading/checks.py",
        "models/loading/shards.py",
        "models/reading/positions.py",
        "models/running/attention.py",
        "models/running/interception.py",
        "models/running/tracing.py",
        "report/conclusions/captured.py",
        "report/page/bounds.py",
        "report/page/captured.py",
        "report/page/charts.py",
        "report/page/frontier.py",
        "report/page/sections.py",
        "report/page/training.py",
        "report/terminal/prediction.py",
        "span/candidates/factored_test.py",
        "span/candidates/replayed_test.py",
        "span/decoder/prefilter.py",
        "span/decoder/prefix_search.py",
        "span/decoder/projections.py",
        "span/encoder/joint_decision.py",
        "span/encoder/repair.py",
        "span/likelihood/confidence.py",
        "span/noise/decoder_search.py",
        "span/noise/embedding_evidence.py",
        "span/noise/encoder_candidates.py",
        "span/noise/position_exchange.py",
        "span/outcome/outcome.py",
        "span/reading/evidence.py",
        "span/reading/model_mismatch.py",
        "span/reading/observed_layer.py",
        "span/strategy.py",
        "span/with_prior/attribution.py",
        "span/with_prior/posterior.py",
        "theory/error/forecast.py",
        "theory/noise/position_forecast.py",
        "theory/prediction/noise.py",
        "theory/prediction/types.py",
        "theory/prediction/verdicts.py",
    }
)
"""Modules whose tests are still to be written; it only ever shrinks, and an entry that is no gap any more is an error."""


def stems(module: Path) -> tuple[Path, str]:
    """Folder and first part of the name of the tests of a module; a package's face is tested beside the package."""
    place = module.relative_to(SOURCE)
    if place.stem != "__init__":
        return place.parent, place.stem.lstrip("_")
    return (place.parent.parent, place.parent.name) if place.parent.name else (Path(), "package")


def files_of(module: Path) -> list[Path]:
    folder, stem = stems(module)
    return [*(TESTS / folder).glob(f"test_{stem}.py"), *(TESTS / folder).glob(f"test_{stem}_*.py")]


MODULES = sorted(SOURCE.rglob("*.py"))
LONG_MODULES = [m for m in MODULES if len(m.read_text(encoding="utf-8").splitlines()) > LONG]
MIRRORED = sorted(
    path
    for path in TESTS.rglob("test_*.py")
    if path.parent not in (TESTS, *(TESTS / name for name in ACROSS)) or path.name == "test_api.py"
)


def test_a_module_has_tests_at_its_own_path() -> None:
    missing = {str(module.relative_to(SOURCE)) for module in LONG_MODULES if not files_of(module)}
    assert not missing - KNOWN_GAPS, "these have no tests/<same path>/test_<name>.py"


def test_the_list_of_gaps_holds_nothing_else() -> None:
    missing = {str(module.relative_to(SOURCE)) for module in LONG_MODULES if not files_of(module)}
    assert not KNOWN_GAPS - missing, "these have tests, are short or are gone: take them off the list"


def test_every_test_file_stands_beside_a_module() -> None:
    """The longest module name that a file's name begins with is what it tests."""
    known = {(folder, stem) for folder, stem in map(stems, MODULES)}
    strays = []
    for path in MIRRORED:
        folder, words = path.parent.relative_to(TESTS), path.stem.removeprefix("test_").split("_")
        starts = ["_".join(words[:k]) for k in range(1, len(words) + 1)]
        if not any((folder, start) in known for start in starts) and folder.name not in starts:
            strays.append(str(path.relative_to(ROOT)))
    assert not strays


def test_every_test_file_says_what_kind_of_proof_it_is() -> None:
    """Once for the file, or test by test."""
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in MIRRORED}
    assert not [name for name, text in texts.items() if not any(f"pytest.mark.{kind}" in text for kind in KINDS)]


def crowded(source: Path) -> dict[str, int]:
    """Folder → number of modules, for those that hold more than ``MOST``; an ``__init__`` is the folder itself."""
    numbers = {
        str(folder.relative_to(source)): sum(file.name != "__init__.py" for file in folder.glob("*.py"))
        for folder in (source, *(path for path in source.rglob("*") if path.is_dir()))
    }
    return {name: number for name, number in numbers.items() if number > MOST and name not in REGISTRIES}


@pytest.mark.contract
def test_no_folder_is_crowded() -> None:
    assert crowded(SOURCE) == {}


@pytest.mark.contract
@pytest.mark.parametrize(
    ("name", "number", "expected"), [("room", 14, {}), ("room", 15, {"room": 15}), ("attacks", 20, {})]
)
def test_the_check_counts_modules(tmp_path: Path, name: str, number: int, expected: dict[str, int]) -> None:
    (tmp_path / name).mkdir()
    for index in range(number):
        (tmp_path / name / f"module_{index}.py").touch()
    (tmp_path / name / "__init__.py").touch()
    assert crowded(tmp_path) == expected
