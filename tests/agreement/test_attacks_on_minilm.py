"""On a real pretrained encoder: the exact attacks are exact at batch one, matching beats the guess that never saw the
update, and an attack that knows the defense is no weaker than one that does not.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

import pytest

from gradleak.core.record import Record
from gradleak.harness.request.prepare import Request, prepare
from gradleak.harness.running.runner import run
from gradleak.harness.running.store import RunFolder

pytestmark = pytest.mark.slow

SMALL: Mapping[str, object] = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def audited(folder: Path, **wanted: object) -> list[Record]:
    prepared = prepare(Request(**({"batch_size": 1, "max_length": 16, "loss": "classification"} | wanted)))  # type: ignore[arg-type]
    with RunFolder(folder, prepared.plan) as store:
        run(prepared.plan, prepared.subject, prepared.source, store)
        return list(store.records)


def mean(records: list[Record], part: str, metric: str = "token_recall") -> float:
    return statistics.fmean(float(getattr(record, part)[metric]["value"]) for record in records)


def test_exact_attacks_are_exact_at_batch_one(tmp_path: Path) -> None:
    records = audited(tmp_path / "run", model="minilm", attacks="token_support,span", defenses=(), repeats=3)
    assert len(records) == 6
    assert all(record.scores["exact_match"]["value"] == 1.0 for record in records)


def test_matching_beats_the_prior_on_minilm(tmp_path: Path) -> None:
    records = audited(tmp_path / "run", model="minilm", attacks="dlg(iterations=80)", defenses=(), repeats=4)
    assert mean(records, "scores") > mean(records, "baseline") + 0.15


@pytest.mark.parametrize(
    ("model", "defense", "lead"),
    [
        ("random:gpt2", "sign()", 0.2),
        ("random:bert", "prune(fraction=0.9)", 0.0),
        ("random:bert", "clip(max_norm=0.01)", 0.0),
    ],
)
def test_knowing_the_defense_does_not_weaken_an_attack(tmp_path: Path, model: str, defense: str, lead: float) -> None:
    """Mean recall over five batches; the two adversaries see the same updates and start from the same points.

    Signs have another length than gradients, so who does not know of them matches nothing, and who does must be ahead. They
    are tried on a decoder: on this encoder matching finds nothing behind signs either way.
    """
    common = {
        "model": model,
        "settings": SMALL,
        "attacks": "dlg(iterations=60)",
        "defenses": (defense,),
        "repeats": 5,
    }
    adaptive = audited(tmp_path / "adaptive", threat="honest_server", **common)
    naive = audited(tmp_path / "naive", threat="naive_server", **common)
    defended = [[r for r in records if r.defenses] for records in (adaptive, naive)]
    assert mean(defended[0], "scores") >= mean(defended[1], "scores") + lead
