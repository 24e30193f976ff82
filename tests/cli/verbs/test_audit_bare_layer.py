"""The layer of the theory by its name: its verdicts before any attack, an audit that judges the exact attack, wrong use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradleak.attacks.identification import Identification
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject

pytestmark = pytest.mark.contract

Call = Callable[..., Any]


@pytest.mark.parametrize(
    ("width", "heads", "tokens", "records", "verdicts", "ranks"),
    [
        (8, 2, 4, 1, ("UNIQUE", "UP_TO_SYMMETRY"), (32, 64)),
        (8, 1, 4, 1, ("UNIQUE", "CONTINUUM"), (32, 63)),
        (4, 1, 8, 1, ("UP_TO_SYMMETRY", "UNDERDETERMINED"), (32, 32)),
        (4, 1, 4, 3, ("UNDERDETERMINED", "UNDERDETERMINED"), (32, 32)),
        (4, 2, 4, 3, ("UP_TO_SYMMETRY", "UNDERDETERMINED"), (48, 48)),
    ],
)
def test_verdicts_and_the_ranks_of_the_whole_jacobian(
    gradleak: Call,
    width: int,
    heads: int,
    tokens: int,
    records: int,
    verdicts: tuple[str, str],
    ranks: tuple[int, int],
) -> None:
    sizes = ("--set", f"hidden_size={width}", "--set", f"num_attention_heads={heads}", "--seq-len", tokens)
    done = gradleak("predict", "bare:attention", *sizes, "--batch-size", records, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert tuple(case["verdict"] for case in found["cases"]) == verdicts
    assert tuple(case["rank"] for case in found["cases"]) == tuple(case["seen"] for case in found["cases"]) == ranks
    assert ("does not apply" in found["staged"]) is (records > 1 or width < 2 * tokens)
    page = gradleak("predict", "bare:attention", *sizes, "--batch-size", records)
    assert page.exit_code == 0 and "no attack was run" in page.stdout


def test_an_audit_judges_the_exact_attack(gradleak: Call, tmp_path: Path) -> None:
    done = gradleak(
        "audit", "bare:attention", "--set", "seq_len=3", "--threat", "informed_server", "--attacks", "attention_exact",
        "--repeats", 2, "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert len(records) == 2
    for record in records:
        assert record["status"]["name"] == "EXACT", record["status"]
    assert "recovered the private images at 100.0 dB" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bare:mlp",), "bare:attention"),
        (("bare:attention", "--set", "layers=2"), "layers"),
        (("bare:attention", "--set", "hidden_size=no"), "positive whole numbers"),
        (("bare:attention", "--set", "hidden_size=9"), "multiple of the number of heads"),
        (("bare:attention", "--loss", "causal-lm"), "squared"),
        (("bare:attention", "--batch-size", "500"), "unknowns"),
    ],
)
def test_wrong_use_is_one_message(gradleak: Call, arguments: tuple[str, ...], words: str) -> None:
    done = gradleak("predict", *arguments)
    assert done.exit_code == 2 and words in " ".join(done.stderr.split()), done.stderr


def test_the_squared_loss_is_known_where_records_have_labels() -> None:
    """Gradients of examples average to the update, and candidates are ranked without a label being told."""
    subject = load_subject("bare:attention", classes=3, settings={"seq_len": 3, "hidden_size": 8})
    pixels = torch.rand(9, *subject.pixel_shape, generator=derive(0, "pixels"))
    batch = Batch(inputs=pixels[:2], mask=torch.ones(2, dtype=torch.bool), labels=torch.tensor([2, 0]))
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    update = trainer.update(batch, derive(0, "train"))
    each = trainer.example_gradients(subject.parameters(), trainer.prepare(batch))
    for name, tensor in update.items():
        assert torch.allclose(each[name].mean(0), tensor, atol=1e-5 * float(tensor.abs().max()))
    facts = {"subject": subject, "trainer": trainer, "batch_size": 2, "candidates": tuple(pixels.flip(0)), "stages": ()}
    found = Identification()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(0, "attack"))
    chosen = {tuple(r.flatten().tolist()) for r in found.records}
    assert chosen == {tuple(r.flatten().tolist()) for r in pixels[:2]}
