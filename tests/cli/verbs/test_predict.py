"""``gradleak predict``: theory only, on tiny models; wrong use ends in one message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gradleak.core.attack import Attack
from gradleak.harness.captured.files import Manifest, write_capture
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject
from gradleak.theory.prediction.stand_in import stand_in_batch

pytestmark = pytest.mark.contract

Call = Callable[..., Any]
TINY = ("hidden_size=32", "num_hidden_layers=2", "num_attention_heads=2", "intermediate_size=64")
SMALL_GPT = ("--set", "n_embd=32", "--set", "n_layer=2", "--set", "n_head=2")
SETTINGS = [part for pair in TINY for part in ("--set", pair)]


def plain(gradleak: Call, *arguments: object) -> dict[str, Any]:
    done = gradleak("predict", *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("model", "loss", "ranks"),
    [
        # Query, key, value and all together for one record of 8 distinct tokens: integers that the table law gives.
        ("random:bert", "classification", (8, 7, 8, 8)),
        ("random:llama", "causal-lm", (6, 7, 7, 7)),
        ("random:llama", "classification", (7, 8, 8, 8)),
        ("random:bert", "masked-lm", (8, 7, 8, 8)),
    ],
)
def test_ranks_and_the_models_own_confirmation(gradleak: Call, model: str, loss: str, ranks: tuple[int, ...]) -> None:
    found = plain(gradleak, model, "--batch-size", 1, "--seq-len", 8, "--loss", loss, *SETTINGS)
    assert tuple(row["rank"] for row in found["table"]) == ranks
    assert tuple(row["seen"] for row in found["table"]) == ranks
    assert found["warning"].startswith("A zero residual is never counted as proof")


def test_no_attack_is_run(gradleak: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradleak.attacks.span import Span

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an attack was run")

    assert issubclass(Span, Attack)
    monkeypatch.setattr(Span, "run", refuse)
    plain(gradleak, "random:bert", "--seq-len", 6, *SETTINGS)


def test_the_page_answers_first(gradleak: Call) -> None:
    done = gradleak("predict", "random:bert", "--batch-size", 2, "--seq-len", 6, "--lora-rank", 4, *SETTINGS)
    assert done.exit_code == 0
    text = done.stdout
    order = [
        "Theory only: no attack was run.",
        "What the gradient determines",
        "adapters of rank 4",
        "zero residual is never counted as proof",
        "Which tokens the first attention's gradients hold",
        "What no gradient of this model sees",
        "Where span attacks end",
        "is not safety",
    ]
    assert [text.index(each) for each in order] == sorted(text.index(each) for each in order)


def test_own_data_gets_its_ambiguity_certificate(gradleak: Call, tmp_path: Path) -> None:
    """Two records that share words at crossed places: pairs pass that are not there. A forest has none."""
    crossed, apart = tmp_path / "crossed.txt", tmp_path / "apart.txt"
    crossed.write_text("red blue green\nblue green red\n", encoding="utf-8")
    apart.write_text("red blue green\n", encoding="utf-8")
    found = plain(gradleak, "minilm", "--data", crossed, "--batch-size", 2)
    ambiguity = found["ambiguity"]
    # [CLS] and [SEP] at the ends, three words at all three places between: 6 of 9 pairs are real.
    assert (ambiguity["pairs"], ambiguity["indistinguishable"], ambiguity["components"]) == (8, 11, 3)
    assert "bag of tokens" in ambiguity["sentence"]
    single = plain(gradleak, "minilm", "--data", apart)["ambiguity"]
    assert single["pairs"] == single["indistinguishable"] == 5


def test_noise_lowers_what_is_expected(gradleak: Call) -> None:
    quiet, loud = (
        plain(gradleak, "random:llama", "--seq-len", 6, "--noise-multiplier", z, *SETTINGS)["forecasts"]
        for z in (1e-6, 0.3)
    )
    assert quiet[2]["recall"] == 1.0 and quiet[2]["visible"] == quiet[2]["rank"] == 6
    assert all(f["recall"] < 0.01 and f["visible"] == 0 for f in loud)
    assert all(f["token_half"] < f["token_few"] for f in quiet)


def test_a_captured_update_is_read(gradleak: Call, tmp_path: Path) -> None:
    settings = {k: int(v) for k, v in (pair.split("=") for pair in TINY)}
    subject = load_subject("random:bert", settings=settings)
    batch = stand_in_batch(subject, batch_size=2, seq_len=7, seed=0)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    noisy = {name: value + 0.01 * torch.randn(value.shape, generator=rng) for name, value in update.items()}
    write_capture(noisy, tmp_path / "seen", Manifest(model="random:bert", batch_size=2, seq_len=7))
    found = plain(gradleak, "--observation", tmp_path / "seen", *SETTINGS)
    assert (found["batch_size"], found["seq_len"]) == (2, 7)
    reading = found["observation"]
    assert reading["verdict"] == "NOISY"
    assert reading["low"] < 0.01 < reading["high"]
    assert "What the captured update shows" in gradleak("predict", "--observation", tmp_path / "seen", *SETTINGS).stdout


INFLUENCE = ("random:bert", "--batch-size", 2, "--seq-len", 4)


def test_influence_grows_with_the_perturbation(gradleak: Call) -> None:
    """Pruning nine tenths changes the update more than pruning a tenth does, and moves a reconstruction further."""
    few, many = (
        plain(gradleak, *INFLUENCE, "--influence", f"prune(fraction={fraction}, scope=tensor)", *SETTINGS)["influence"]
        for fraction in (0.1, 0.9)
    )
    assert few["perturbation"] == "prune(fraction=0.1, scope=tensor)"
    assert 0 < few["relative"] < many["relative"] < 1
    assert 0 < few["moved"] < many["moved"]
    for forecast in (few, many):
        assert 0 < forecast["published"] <= forecast["at_least"]
        assert forecast["residual"] < 1e-5
        # Two records of equally many tokens: the whole is their root mean square.
        mean_square = sum(length**2 for length in forecast["per_record"]) / 2
        assert forecast["moved"] ** 2 == pytest.approx(mean_square, rel=1e-4)


def test_no_perturbation_moves_nothing_and_the_page_says_what_was_asked(gradleak: Call) -> None:
    assert plain(gradleak, *INFLUENCE, "--influence", "none", *SETTINGS)["influence"]["moved"] == 0
    page = gradleak("predict", *INFLUENCE, "--influence", "gaussian(relative_std=0.1)", *SETTINGS)
    assert page.exit_code == 0
    assert "How far the perturbation moves a reconstruction" in page.stdout
    assert "gaussian(relative_std=0.1) changes the update by" in page.stdout
    assert "influence" not in plain(gradleak, *INFLUENCE, *SETTINGS)


def test_noise_bounds_the_error_and_leaves_fewer_positions(gradleak: Call) -> None:
    """More noise, a larger error (never above that of the prior) and fewer pairs that beat their alternatives."""
    quiet, loud, none = (
        plain(gradleak, "random:gpt2", "--batch-size", 2, "--seq-len", 6, "--relative-std", std, *SMALL_GPT)
        for std in (1e-6, 30.0, 0.0)
    )
    assert quiet["error"]["low"] <= quiet["error"]["high"] < loud["error"]["low"] <= loud["error"]["high"]
    assert loud["error"]["high"] < 1.05
    assert quiet["positions"]["preferred"] > 0.99 > loud["positions"]["preferred"]
    assert "not_computed" in none["error"]
    assert none["positions"]["preferred"] is None and none["positions"]["most_tokens"] > 0
    rotary = plain(gradleak, "random:llama", "--batch-size", 2, "--seq-len", 6, *SETTINGS)["positions"]
    assert "positions do not enter" in rotary["not_computed"]


def test_a_vision_transformer_is_asked_about_its_patches(gradleak: Call) -> None:
    """Four patches in a width of 256, for one record and for two."""
    for records, attack in ((1, "patch_exact"), (2, "patch_batch")):
        found = plain(gradleak, "random:vit", "--set", "image_size=32", "--batch-size", records)
        assert found["patches"] == 4 and found["width"] == 256
        assert all(law["holds"] and attack in law["reason"] for law in found["laws"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("random:bert", "--influence", "mixup"), "acts on the update"),
        (("random:bert", "--influence", "blur"), "blur"),
        (("random:bert", "--share", "delta(optimizer=adamw)"), "AdamW"),
        (("random:bert", "--dtype", "int4"), "float32, bf16, fp16"),
        (("random:bert", "--noise-multiplier", "1", "--relative-std", "1"), "two units of the same noise"),
        (("random:bert", "--seq-len", "100000"), "at most"),
        (("random:bert", "--loss", "regression"), "Unknown loss"),
        (("--data", "missing.txt"), "no file"),
        (("--observation", "missing"), "no observation"),
    ],
)
def test_wrong_use(gradleak: Call, arguments: tuple[str, ...], message: str) -> None:
    extra = SETTINGS if arguments[0] in {"random:bert"} else []
    done = gradleak("predict", *arguments, *extra)
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " ")


def test_stand_in_is_reproducible_and_distinct() -> None:
    subject = load_subject("random:bert", settings={"hidden_size": 32, "num_attention_heads": 2})
    one, two, other = (stand_in_batch(subject, batch_size=3, seq_len=9, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.inputs, two.inputs) and not torch.equal(one.inputs, other.inputs)
    assert one.inputs.unique().numel() == 27


def test_the_spectrum_says_its_precision_and_what_it_does_not_resolve(gradleak: Call) -> None:
    spectrum = plain(gradleak, "random:bert", "--batch-size", 1, "--seq-len", 8, *SETTINGS)["spectrum"]
    assert (spectrum["dtype"], spectrum["unknowns"], spectrum["null"]) == ("float64", 256, 8)
    assert spectrum["resolution"] in {"MET", "AT_MOST", "FLOOR"}
    assert 0 < spectrum["rank_low"] <= spectrum["rank_high"] <= 248
    assert spectrum["floor"] < spectrum["smallest"] < spectrum["largest"]


def test_several_local_steps_have_no_spectrum_and_say_so(gradleak: Call) -> None:
    share = "delta(steps=3, lr=0.01, optimizer=sgd)"
    found = plain(gradleak, "random:bert", "--batch-size", 1, "--seq-len", 8, "--share", share, *SETTINGS)
    assert "local steps" in found["spectrum"]["not_computed"]
