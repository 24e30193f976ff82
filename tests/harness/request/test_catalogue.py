"""The module path is the registry: a file or an entry point is all that a new method takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradleak.core.attack import Status
from gradleak.core.errors import GradleakError, UnknownNameError, UsageError
from gradleak.core.knowledge import FACTS, THREATS, Knowledge, Observation
from gradleak.core.specs import Spec, parse_chain
from gradleak.core.update import Update
from gradleak.harness.request import catalogue
from gradleak.harness.request.catalogue import Catalogue
from gradleak.models import load_subject

pytestmark = pytest.mark.contract

GUIDE = Path(__file__).parents[3] / "docs" / "adding_an_attack.md"
KINDS_OF_CODE = ("attacks", "defenses", "metrics")

Package = Callable[..., str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Package:
    """Writes a package of its own name for this test, with the given files, and puts it on the path."""
    name = re.sub(r"\W", "_", f"acme_{request.node.name}")
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(**files: str) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for stem, text in {"__init__": "", **files}.items():
            (folder / f"{stem}.py").write_text(text, encoding="utf-8")
        return name

    yield write
    for module in [key for key in sys.modules if key.partition(".")[0] == name]:
        del sys.modules[module]


@pytest.fixture
def announce(tmp_path: Path) -> Callable[[str], None]:
    """Installs a distribution's metadata, as pip would: a dist-info folder on the path."""

    def write(entry_points: str) -> None:
        folder = tmp_path / "acme_audit-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-audit\nVersion: 1.0\n", encoding="utf-8")
        (folder / "entry_points.txt").write_text(entry_points, encoding="utf-8")

    return write


def guide_code() -> str:
    """The attack that the guide shows."""
    return re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)[0]


def attacks_and(package: str) -> Catalogue:
    return Catalogue(packages={"attacks": ("gradleak.attacks", package)})


# What ships


@pytest.mark.parametrize("kind", KINDS_OF_CODE)
def test_every_module_is_a_method(kind: str) -> None:
    folder = Path(sys.modules["gradleak"].__file__ or "").parent / kind
    files = [*folder.glob("*.py"), *(path.parent for path in folder.glob("*/__init__.py"))]
    modules = {path.stem for path in files if not path.stem.startswith("_")}
    assert set(catalogue.names(kind)) == modules
    for name in modules:
        assert catalogue.find(kind, name).__module__ == f"gradleak.{kind}.{name}"


def test_the_promised_names_are_there() -> None:
    assert {"dlg", "inverting_gradients", "tag", "token_support", "span"} <= set(catalogue.names("attacks"))
    assert {"gaussian", "laplace", "clip", "prune", "sign", "quantize"} <= set(catalogue.names("defenses"))
    assert {"token_recall", "exact_match", "rougeL", "identification_rank", "ssim"} <= set(catalogue.names("metrics"))
    assert catalogue.names("threats") == tuple(sorted(THREATS))


def test_names_are_told_without_torch() -> None:
    """``gradleak --help`` and ``gradleak list`` must answer at once."""
    code = (
        "import sys; from gradleak.harness.request import catalogue as c; [c.names(kind) for kind in c.KINDS]; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path), "PATH": ""})


@pytest.mark.parametrize("kind", catalogue.KINDS)
def test_explanations_are_plain_and_complete(kind: str) -> None:
    for name in catalogue.names(kind):
        told = catalogue.explain(kind, name)
        assert json.loads(json.dumps(told)) == told
        assert told == catalogue.explain(None, name) and told["kind"] == kind and told["name"] == name
        assert told["summary"] and told["description"]
        assert {"name", "type", "required", "default", "meaning"} == set().union(*told["arguments"]) or not told[
            "arguments"
        ]


def test_explanation_reads_the_docstring() -> None:
    told = catalogue.explain("attacks", "span")
    assert told["needs"] == {"subject": FACTS["subject"]}
    beam = next(argument for argument in told["arguments"] if argument["name"] == "beam")
    assert beam["type"] == "int" and beam["default"] == 64 and not beam["required"] and beam["meaning"]
    assert "2405.15586" in told["source"] and "Guarantees" in told["sections"]
    fraction = catalogue.explain("defenses", "prune")["arguments"][0]
    assert fraction["required"] and fraction["default"] is None and fraction["meaning"].endswith("10 entries is 7.")


def test_lists_and_chains() -> None:
    first, second = catalogue.make_attacks("token_support, tag(iterations=5)")
    assert type(first).__name__ == "TokenSupport" and second.iterations == 5  # type: ignore[attr-defined]
    assert catalogue.make_attacks("token-support")[0] == first
    assert catalogue.make_stages("none") == ()
    assert [type(stage).__name__ for stage in catalogue.make_stages("clip(max_norm=1)+sign()")] == ["Clip", "Sign"]
    assert catalogue.make("threats", Spec(type="honest-server")) is THREATS["honest_server"]
    assert catalogue.make("metrics", Spec(type="exact_match")).values


# A new file


def test_a_new_file_is_all_it_takes(package: Package) -> None:
    """The guide's own example, dropped into a package, is listed, explained, built and run."""
    code = guide_code()
    found = attacks_and(package(label_count=code))
    assert set(found.names("attacks")) == {*catalogue.names("attacks"), "label_count"}
    told = found.explain(None, "label_count")
    assert told["arguments"][0] == {
        "name": "margin",
        "type": "float",
        "required": False,
        "default": 0.0,
        "meaning": "entries above -margin are taken for rounding.",
    }
    assert told["source"].startswith("the derivative of softmax")

    attack = found.make_attacks("label_count(margin=0.001)")[0]
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 300}
    subject = load_subject("random:bert", classes=3, settings=settings)
    bias = subject.anatomy.head.bias  # type: ignore[union-attr]
    update = Update({bias: torch.tensor([0.4, -0.5, 0.1])})
    result = attack(Observation(update=update, knowledge=Knowledge(facts={"subject": subject})), rng=torch.Generator())
    assert result.status is Status.CONVERGED and result.labels == (1,)
    elsewhere = Observation(update=Update({"other": torch.ones(1)}), knowledge=Knowledge(facts={"subject": subject}))
    assert attack(elsewhere, rng=torch.Generator()).status is Status.NOT_APPLICABLE


def test_the_guide_stays_short() -> None:
    statements = [line for line in guide_code().splitlines() if line.strip()]
    assert len(statements) <= 40


def test_helpers_with_an_underscore_are_not_methods(package: Package) -> None:
    name = package(label_count=guide_code(), _helper="raise RuntimeError('imported')")
    assert "_helper" not in attacks_and(name).names("attacks")


def test_a_module_without_a_method_is_refused_when_it_is_asked_for(package: Package) -> None:
    found = attacks_and(package(empty="from gradleak.attacks.dlg import DLG\n"))
    assert "empty" in found.names("attacks")
    with pytest.raises(GradleakError, match=r"exactly one public subclass of Attack, it defines: none"):
        found.find("attacks", "empty")


def test_a_module_with_two_methods_is_refused(package: Package) -> None:
    found = attacks_and(package(twins=guide_code() + "\n\nclass Other(LabelCount):\n    pass\n"))
    with pytest.raises(GradleakError, match=r"it defines: LabelCount, Other"):
        found.find("attacks", "twins")


def test_an_unfinished_method_is_refused(package: Package) -> None:
    head = "from gradleak.core.attack import Attack\nclass Half(Attack):\n"
    run = "    def run(self, update, view, rng, clock):\n        raise NotImplementedError\n"
    found = attacks_and(package(abstract=head + "    summary = 'Half.'\n", silent=head + run))
    with pytest.raises(GradleakError, match=r"Half in .*abstract' lacks: run"):
        found.find("attacks", "abstract")
    with pytest.raises(GradleakError, match=r"lacks `summary`"):
        found.find("attacks", "silent")


def test_a_taken_name_is_refused(package: Package) -> None:
    found = attacks_and(package(dlg=guide_code()))
    with pytest.raises(GradleakError, match=r"Two attacks are called 'dlg': gradleak\.attacks\.dlg and acme_"):
        found.names("attacks")


def test_one_name_in_two_kinds_asks_which(package: Package) -> None:
    found = Catalogue(packages={"attacks": (package(gaussian=guide_code()),), "defenses": ("gradleak.defenses",)})
    with pytest.raises(UsageError, match=r"among the attacks and the defenses"):
        found.explain(None, "gaussian")
    assert found.explain("defenses", "gaussian")["kind"] == "defenses"


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(GradleakError, match=r"'no_such_package' is no package"):
        attacks_and("no_such_package").names("attacks")


# An entry point


@pytest.mark.parametrize("suffix", ["", ":LabelCount"], ids=["module", "class"])
def test_entry_points_are_found(package: Package, announce: Callable[[str], None], suffix: str) -> None:
    name = package(label_count=guide_code())
    announce(f"[gradleak.attacks]\nlabel_count = {name}.label_count{suffix}\n")
    assert "label_count" in catalogue.names("attacks")
    assert type(catalogue.make_attacks("label_count()")[0]).__module__ == f"{name}.label_count"
    assert "label_count" not in catalogue.names("defenses")


def test_a_broken_entry_point_warns_and_is_left_out(package: Package, announce: Callable[[str], None]) -> None:
    name = package(label_count="import a_module_that_is_not_installed\n")
    announce(f"[gradleak.attacks]\nlabel_count = {name}.label_count\n")
    with pytest.warns(UserWarning, match=r"'label_count' of distribution 'acme-audit' cannot be imported"):
        assert "label_count" not in catalogue.names("attacks")
    with pytest.warns(UserWarning, match="Left out"), pytest.raises(UnknownNameError, match="Unknown attack"):
        catalogue.find("attacks", "label_count")


def test_an_error_inside_a_third_party_module_is_not_swallowed(
    package: Package, announce: Callable[[str], None]
) -> None:
    name = package(label_count="1 / 0\n")
    announce(f"[gradleak.attacks]\nlabel_count = {name}.label_count\n")
    with pytest.raises(ZeroDivisionError):
        catalogue.names("attacks")


def test_an_entry_point_must_bear_its_modules_name(package: Package, announce: Callable[[str], None]) -> None:
    name = package(label_count=guide_code())
    announce(f"[gradleak.attacks]\ncounts = {name}.label_count\n")
    with pytest.raises(GradleakError, match=r"give both the same name"):
        catalogue.names("attacks")


def test_an_entry_point_cannot_replace_what_ships(package: Package, announce: Callable[[str], None]) -> None:
    name = package(dlg=guide_code())
    announce(f"[gradleak.attacks]\ndlg = {name}.dlg\n")
    with pytest.raises(GradleakError, match=r"Two attacks are called 'dlg'"):
        catalogue.names("attacks")


# The guide to the defenses


def test_the_guide_to_the_defenses_is_complete_and_every_chain_in_its_table_works() -> None:
    text = (GUIDE.parent / "defenses.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    chains = [chain for row in rows for chain in re.findall(r"`([^`]*\([^`]*\))`", row) if "..." not in chain]
    shown = {spec.type for chain in chains for spec in parse_chain(chain)}
    assert shown == set(catalogue.names("defenses"))
    assert all(catalogue.make_stages(chain) for chain in chains)
