"""What a name becomes: seeds, heads and losses, each against the library or a count by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from gradleak.core.rng import derive
from gradleak.models import load_subject
from gradleak.models.tokenizer import demo_model_path

pytestmark = pytest.mark.oracle

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 300}


def minilm_folder() -> Path:
    folder = demo_model_path()
    assert folder is not None, "the tests need the demo extra"
    return folder


def test_weights_follow_the_seed_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same, other = (load_subject("random:llama", settings=SMALL, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(same.parameters()[name], value) for name, value in one.parameters().items())
    name = one.anatomy.blocks[0].mlp_output.weight
    assert not torch.equal(one.parameters()[name], other.parameters()[name])


def test_minilm_is_the_checkpoint_with_a_seeded_head() -> None:
    one, same, other = (load_subject("minilm", classes=3, seed=seed) for seed in (0, 0, 1))
    reference = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=3).state_dict()
    head = one.anatomy.head
    assert head is not None and (one.classes, one.loss.name, one.name) == (3, "classification", "minilm")
    for name, value in one.parameters().items():
        assert torch.equal(value, same.parameters()[name])
        if not name.startswith("classifier"):
            assert torch.equal(value, reference[name]), name
    assert not torch.equal(one.parameters()[head.weight], other.parameters()[head.weight])


def test_loading_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    load_subject("minilm")
    load_subject("random:gpt2", settings=SMALL)
    assert capfd.readouterr() == ("", "")


def test_the_loss_is_that_of_the_saved_head(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=300)).save_pretrained(tmp_path / "gpt2")
    assert load_subject(str(tmp_path / "bert")).loss.name == "masked-lm"
    causal = load_subject(str(tmp_path / "gpt2"))
    assert (causal.loss.name, causal.classes, causal.anatomy.tied) == ("causal-lm", 300, True)
    assert load_subject(tmp_path / "gpt2", loss="classification").loss.name == "classification"


def test_a_trained_classification_head_keeps_its_classes(tmp_path: Path) -> None:
    saved = load_subject("random:bert", classes=5, settings=SMALL)
    saved.module.save_pretrained(tmp_path)
    loaded = load_subject(str(tmp_path))
    assert loaded.classes == 5
    assert all(torch.equal(value, loaded.parameters()[name]) for name, value in saved.parameters().items())


def test_a_module_is_used_as_it_is() -> None:
    module = GPT2LMHeadModel._from_config(
        GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=300), attn_implementation="sdpa"
    )
    subject = load_subject(module)
    assert subject.module is module and not module.training
    assert (subject.loss.name, subject.name) == ("causal-lm", "GPT2LMHeadModel")
    assert module.config._attn_implementation == "eager"
    assert subject.tokenizer is not None and subject.tokenizer.name == "bytes"


def test_image_normalization_is_read_from_the_checkpoint(tmp_path: Path) -> None:
    settings = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "image_size": 32}
    saved = load_subject("random:vit", settings=settings)
    saved.module.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2]}')
    loaded = load_subject(str(tmp_path))
    assert (loaded.pixel_mean, loaded.pixel_std) == ((0.5,) * 3, (0.2,) * 3)
    pixels = torch.rand(1, *loaded.pixel_shape, generator=derive(0))
    torch.testing.assert_close(loaded.logits(pixels=pixels), saved.logits(pixels=(pixels - 0.5) / 0.2))
