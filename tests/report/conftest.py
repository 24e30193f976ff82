"""Runs made of synthetic records: every status, flag and modality that the report must show, without an audit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gradleak import report
from gradleak.core.record import Record

SENTENCES = (
    "Zylphine Okonkwo-Bauer owes Qworntham Bank 48213 euros since Frobuary",
    "call <script>alert('xq7')</script> Vandermolen about the kidnelith biopsy & 'blorvex'",
    "password: hunter9931 belongs to jxmilla@quovadent.example",
    "\u202ereversed wyrmwood\u0007 address 17b Thistlequay Lane",
)
"""Private records with distinctive words, markup, control and bidirectional characters."""

SENTENCE = {
    "EXACT": "Certified: the update of the reconstruction equals the released one up to rounding.",
    "CONVERGED": "The search reached its own stopping rule.",
    "ITERATIONS_SPENT": "The search stopped at its iteration limit.",
    "DIVERGED": "The objective became infinite or undefined; the attack failed.",
    "NOT_APPLICABLE": "The attack does not apply to this observation.",
}

DEFENSES: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "gaussian": [{"type": "gaussian", "args": {"std": 0.001, "relative_std": None, "noise_multiplier": None}}],
    "private": [
        {"type": "clip", "args": {"max_norm": 1.0}},
        {"type": "gaussian", "args": {"std": None, "relative_std": None, "noise_multiplier": 0.5}},
    ],
    "prune": [{"type": "prune", "args": {"fraction": 0.99, "scope": "global"}}],
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one synthetic attack fares: the fraction of tokens that it gets right, and everything beside it."""

    recall: float
    ordered: bool = True
    status: str = "CONVERGED"
    message: str = ""
    flags: tuple[str, ...] = ()
    objective: float | None = None
    truth: float | None = None
    args: dict[str, Any] = field(default_factory=dict)


def score(value: float, n: int, *, chance: float | None = None, up: bool = True, spread: float = 0.0) -> dict[str, Any]:
    return {
        "value": value,
        "low": value - spread,
        "high": value + spread,
        "chance": chance,
        "n": n,
        "higher_is_better": up,
    }


def record(**changes: Any) -> Record:
    """A valid record of an undefended text audit, with ``changes``."""
    plain: dict[str, Any] = {
        "cell": "cell",
        "scenario": {
            "model": "minilm",
            "modality": "text",
            "loss": "classification",
            "share": {"type": "gradient", "args": {"dtype": "float32"}},
            "batch_size": 2,
            "data": {"name": "messages.txt", "fingerprint": "sha256:4be1c0ffee", "size": 200},
            "max_length": 32,
            "parameters": 22713986,
            "tokenizer": "WordPiece",
        },
        "attack": {"type": "tag", "args": {"iterations": 1000, "alpha": 0.01}},
        "defenses": [],
        "knowledge": {
            "threat": "honest_server",
            "facts": ["batch_size", "seq_len", "stages", "subject", "trainer"],
        },
        "seed": 0,
        "repeat": 0,
        "status": {
            "name": "CONVERGED",
            "sentence": SENTENCE["CONVERGED"],
            "message": "",
            "objective": None,
            "objective_at_truth": None,
            "certificate": None,
            "adapted": [],
            "trace": [],
            "statistics": {},
        },
        "scores": {"exact_match": score(0.0, 2, chance=0.0), "token_recall": score(0.5, 2, chance=0.01)},
        "baseline": {"exact_match": score(0.0, 2, chance=0.0), "token_recall": score(0.1, 2, chance=0.01)},
        "flags": ["NO_DP_CLAIM"],
        "privacy": {
            "epsilon": None,
            "delta": 1e-5,
            "relation": "add-or-remove",
            "unit": "record",
            "view": "server",
            "mechanism": "none",
            "statement": "no guarantee: nothing is clipped and no noise is added",
        },
        "environment": {
            "gradleak": "0.1.0",
            "commit": "0123abc",
            "dirty": False,
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
            "device": "cpu",
            "dtype": "float32",
            "attention": "eager",
        },
        "seconds": {"update": 0.1, "attack": 3.2, "score": 0.2},
    }
    return Record(**(plain | changes))


def pieces_of(text: str) -> list[str]:
    """Words in pieces of at most six letters, continued as WordPiece does."""
    result: list[str] = []
    for word in text.split(" "):
        parts = [word[i : i + 6] for i in range(0, len(word), 6)] or [""]
        result += [parts[0], *(f"##{part}" for part in parts[1:])]
    return result


class Vocabulary:
    """Token ids by first appearance, far from small numbers, so that an id in a page is no coincidence."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def ids(self, pieces: Sequence[str]) -> np.ndarray:
        return np.array([self._ids.setdefault(piece, 771_001 + 13 * len(self._ids)) for piece in pieces], np.int64)


def spoil(pieces: list[str], recall: float, rng: np.random.Generator) -> list[str]:
    """Keeps about ``recall`` of the pieces in place; of the others, half change places and half become nonsense."""
    kept = list(pieces)
    wrong = [i for i in range(len(pieces)) if rng.random() >= recall]
    moved, replaced = wrong[::2], wrong[1::2]
    for i, j in zip(moved, [*moved[1:], *moved[:1]], strict=True):
        kept[i] = pieces[j]
    for i in replaced:
        kept[i] = f"nonce{int(rng.integers(90))}"
    return kept


def text_tensors(path: Path, outcome: Outcome, texts: Sequence[str], rng: np.random.Generator) -> float:
    """Writes truth and guess as the runner does; returns the share of records that are exact."""
    vocabulary, tensors, metadata, exact = Vocabulary(), {}, {}, 0
    bag: list[str] = []
    for i, text in enumerate(texts):
        truth = pieces_of(text)
        guess = spoil(truth, outcome.recall, rng)
        exact += truth == guess
        bag += guess
        tensors[f"truth.{i}"] = vocabulary.ids(truth)
        metadata[f"pieces.truth.{i}"] = json.dumps(truth)
        if outcome.ordered:
            tensors[f"guess.{i}"] = vocabulary.ids(guess)
            metadata[f"pieces.guess.{i}"] = json.dumps(guess)
    if not outcome.ordered:
        tensors["guess.0"] = vocabulary.ids(bag)
        metadata["pieces.guess.0"] = json.dumps(bag)
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, {**metadata, "ordered": str(outcome.ordered).lower(), "modality": "text"})
    return exact / len(texts) if outcome.ordered else 0.0


def curve(outcome: Outcome, rng: np.random.Generator) -> list[tuple[int, float]]:
    if outcome.objective is None:
        return []
    steps = np.arange(0, 1001, 10)
    decay = 2.5 * np.exp(-steps / 160) + outcome.objective
    return [(int(s), float(v * np.exp(0.05 * rng.normal()))) for s, v in zip(steps, decay, strict=True)]


def status(outcome: Outcome, trace: list[tuple[int, float]], defense: str) -> dict[str, Any]:
    return {
        "name": outcome.status,
        "sentence": SENTENCE[outcome.status],
        "message": outcome.message,
        "objective": trace[-1][1] if trace else None,
        "objective_at_truth": outcome.truth if trace else None,
        "certificate": 1e-7 if outcome.status == "EXACT" else None,
        "adapted": [stage["type"] for stage in DEFENSES[defense]] if "NON_ADAPTIVE" not in outcome.flags else [],
        "trace": trace,
        "statistics": {"restarts": 4.0},
    }


TEXT_OUTCOMES: dict[str, dict[str, Outcome]] = {
    "none": {
        "token_support": Outcome(recall=1.0, ordered=False, status="EXACT"),
        "span": Outcome(recall=1.0, status="EXACT"),
        "dlg": Outcome(recall=0.35, objective=0.4, truth=1e-14, flags=("OPTIMIZER_FAILED",)),
        "tag": Outcome(recall=0.85, objective=2e-4, truth=1e-5),
    },
    "gaussian": {
        "token_support": Outcome(recall=0.75, ordered=False),
        "span": Outcome(recall=0.55),
        "dlg": Outcome(recall=0.1, objective=0.9, truth=0.2, flags=("OPTIMIZER_FAILED",)),
        "tag": Outcome(recall=0.45, objective=0.21, truth=0.2, status="ITERATIONS_SPENT", flags=("WEAKER_ATTACK_WON",)),
    },
    "private": {
        "token_support": Outcome(recall=0.1, ordered=False, flags=("AMBIGUOUS",)),
        "span": Outcome(
            recall=0.0,
            status="NOT_APPLICABLE",
            message="The noise lifts the rank of every gradient to full: no column space tells tokens apart.",
        ),
        "dlg": Outcome(recall=0.05, objective=1.4, truth=1.9, status="ITERATIONS_SPENT"),
        "tag": Outcome(recall=0.12, objective=1.3, truth=1.9, status="ITERATIONS_SPENT", flags=("NON_ADAPTIVE",)),
    },
    "prune": {
        "token_support": Outcome(recall=0.7, ordered=False),
        "span": Outcome(recall=0.0, status="DIVERGED", message="The residual is not finite after pruning."),
        "dlg": Outcome(recall=0.15, objective=0.7, truth=1e-3, flags=("OPTIMIZER_FAILED",)),
        "tag": Outcome(recall=0.5, objective=2e-3, truth=1e-3),
    },
}

PRIVACY = {
    "epsilon": 8.125,
    "delta": 1e-5,
    "relation": "add-or-remove",
    "unit": "record",
    "view": "server",
    "mechanism": "gaussian",
    "statement": "ε = 8.13 at δ = 1e-05 for one record of the batch, one release, add-or-remove",
}


def text_records(folder: Path, *, repeats: int, outcomes: dict[str, dict[str, Outcome]] | None = None) -> list[Record]:
    records: list[Record] = []
    for repeat in range(repeats):
        for defense, attacks in (outcomes or TEXT_OUTCOMES).items():
            for attack, outcome in attacks.items():
                records.append(text_record(folder, attack, defense, outcome, repeat))
    return records


def text_record(folder: Path, attack: str, defense: str, outcome: Outcome, repeat: int) -> Record:
    rng = np.random.default_rng([repeat, *map(ord, attack + defense)])
    cell = f"{defense}-{attack}-{repeat}"
    base = record(cell=cell, repeat=repeat, seed=repeat, attack={"type": attack, "args": {"iterations": 1000}})
    scores: dict[str, Any] = {}
    if outcome.status not in {"NOT_APPLICABLE", "DIVERGED"}:
        texts = [SENTENCES[(2 * repeat + i) % len(SENTENCES)] for i in range(2)]
        exact = text_tensors(folder / "tensors" / f"{cell}.safetensors", outcome, texts, rng)
        recall = min(1.0, max(0.0, outcome.recall + (0.03 * rng.normal() if 0 < outcome.recall < 1 else 0)))
        scores = {
            "exact_match": score(exact, 2, chance=0.0),
            "token_recall": score(recall, 2, chance=0.004),
            "rouge1": score(0.9 * recall, 2),
            "rouge2": score(0.8 * recall**2, 2),
            "rougeL": score(0.85 * recall, 2),
            "identification_rank": score(1 + 9 * (1 - recall), 2, chance=5.5, up=False, spread=0.4),
        }
        if not outcome.ordered:
            del scores["exact_match"]
        else:
            scores["token_accuracy"] = score(0.9 * recall if recall < 1 else 1.0, 2, chance=0.001)
    baseline = {
        "exact_match": score(0.0, 2, chance=0.0),
        "token_recall": score(0.11, 2, chance=0.004),
        "token_accuracy": score(0.04, 2, chance=0.001),
        "rouge1": score(0.1, 2),
        "rouge2": score(0.01, 2),
        "rougeL": score(0.09, 2),
        "identification_rank": score(5.2, 2, chance=5.5, up=False, spread=0.4),
    }
    claim = [] if defense == "private" else ["NO_DP_CLAIM"]
    return record(
        cell=cell,
        repeat=repeat,
        seed=repeat,
        attack=base.attack,
        defenses=DEFENSES[defense],
        status=status(outcome, curve(outcome, rng), defense),
        scores=scores,
        baseline=baseline,
        flags=[*outcome.flags, *claim],
        privacy=PRIVACY if defense == "private" else base.privacy,
    )


def image_records(
    folder: Path, *, repeats: int, side: int = 32, defenses: Sequence[str] = ("none", "gaussian")
) -> list[Record]:
    records: list[Record] = []
    scenario = dict(record().scenario) | {
        "model": "random:vit",
        "modality": "image",
        "tokenizer": None,
        "max_length": None,
    }
    for repeat in range(repeats):
        for defense in defenses:
            for attack, noise in (("inverting_gradients", 0.03), ("dlg", 0.3)):
                rng = np.random.default_rng([repeat, *map(ord, attack + defense)])
                noise = noise if defense == "none" else 0.5
                cell = f"{defense}-{attack}-{repeat}"
                error = image_tensors(folder / "tensors" / f"{cell}.safetensors", side, noise, rng)
                outcome = Outcome(recall=0.0, objective=noise, truth=1e-3)
                records.append(
                    record(
                        cell=cell,
                        repeat=repeat,
                        seed=repeat,
                        scenario=scenario,
                        attack={"type": attack, "args": {"iterations": 1000}},
                        defenses=DEFENSES[defense],
                        status=status(outcome, curve(outcome, rng), defense),
                        scores={
                            "mse": score(error, 2, up=False),
                            "psnr": score(-10 * np.log10(error), 2),
                            "ssim": score(max(0.0, 1 - 2 * noise), 2),
                            "identification_rank": score(1.0 if noise < 0.1 else 4.0, 2, chance=5.5, up=False),
                        },
                        baseline={
                            "mse": score(0.08, 2, up=False),
                            "psnr": score(11.0, 2),
                            "ssim": score(0.08, 2),
                            "identification_rank": score(5.0, 2, chance=5.5, up=False),
                        },
                    )
                )
    return records


def image_tensors(path: Path, side: int, noise: float, rng: np.random.Generator) -> float:
    tensors, errors = {}, []
    y, x = np.mgrid[0:side, 0:side] / side
    for i in range(2):
        disc = ((x - 0.3 - 0.3 * i) ** 2 + (y - 0.5) ** 2 < 0.06).astype(np.float32)
        truth = np.stack([disc, np.clip(y, 0, 1), 1 - x]).astype(np.float32)
        guess = np.clip(truth + noise * rng.normal(size=truth.shape), 0, 1).astype(np.float32)
        tensors |= {f"truth.{i}": truth, f"guess.{i}": guess}
        errors.append(float(((truth - guess) ** 2).mean()))
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, {"ordered": "true", "modality": "image"})
    return float(np.mean(errors))


PLAN: dict[str, Any] = {
    "model": "minilm",
    "share": {"share": "gradient", "dtype": "float32"},
    "threat": "honest_server",
    "attacks": [{"type": "tag"}],
    "defenses": [[]],
    "command": "gradleak audit minilm --batch-size 2 --repeats 5 --defenses 'gaussian(std=0.001)'",
    "seed": 0,
    "available": {
        "attacks": ["dlg", "inverting_gradients", "span", "tag", "token_support"],
        "threats": ["eavesdropper", "honest_server", "informed_server", "naive_server"],
    },
}


def write_run(folder: Path, records: Sequence[Record], plan: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "plan.json").write_text(json.dumps(PLAN if plan is None else plan), encoding="utf-8")
    (folder / "records.jsonl").write_text("".join(r.to_json() + "\n" for r in records), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four attacks against four defenses, three repeats. Shared: copy it before writing to it."""
    folder = tmp_path_factory.mktemp("text")
    return write_run(folder, text_records(folder, repeats=3))


@pytest.fixture(scope="session")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    return write_run(folder, image_records(folder, repeats=3))


@pytest.fixture(scope="session")
def text_page(text_run: Path) -> str:
    return report.build(text_run)


@pytest.fixture(scope="session")
def revealed_page(text_run: Path) -> str:
    return report.build(text_run, reveal=True)


@pytest.fixture
def make_record() -> Callable[..., Record]:
    return record


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    return lambda records: write_run(tmp_path / "run", records)


@pytest.fixture
def save_tokens() -> Callable[..., None]:
    def save(
        run: Path,
        cell: str,
        ids: dict[str, list[int]],
        metadata: dict[str, str] | None = None,
        claims: dict[str, list[float]] | None = None,
    ) -> None:
        (run / "tensors").mkdir(exist_ok=True)
        tensors = {key: np.array(values, np.int64) for key, values in ids.items()}
        tensors |= {key: np.array(values, np.float32) for key, values in (claims or {}).items()}
        save_file(
            tensors,
            run / "tensors" / f"{cell}.safetensors",
            {"ordered": "true", "modality": "text", **(metadata or {})},
        )

    return save
