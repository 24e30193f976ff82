"""What a name becomes: sizes, heads, seeds, tokenizers and data, each against the library or a count by hand."""

from __future__ import annotations

import csv
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
)

from gradleak.core.batch import IGNORED
from gradleak.core.rng import derive
from gradleak.harness.request.data import draw_batch, load_pool
from gradleak.models import ByteTokenizer, load_subject
from gradleak.models.configs import random_config
from gradleak.models.tokenizer import demo_model_path, fallback_tokenizer, load_tokenizer

pytestmark = pytest.mark.oracle

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 300}


def minilm_folder() -> Path:
    folder = demo_model_path()
    assert folder is not None, "the tests need the demo extra"
    return folder


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("gpt2", {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}),
        ("bert", {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "vocab_size": 30522}),
        ("llama", {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}),
        ("mistral", {"num_key_value_heads": 1, "head_dim": 64, "vocab_size": 32000}),
        ("gemma2", {"num_key_value_heads": 2, "head_dim": 64, "vocab_size": 256000}),
        ("distilbert", {"dim": 256, "n_layers": 4, "n_heads": 4, "hidden_dim": 1024}),
        ("opt", {"hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 1024}),
        ("vit", {"hidden_size": 256, "num_hidden_layers": 4, "image_size": 224}),
    ],
)
def test_random_models_have_the_promised_sizes(model_type: str, sizes: dict[str, int]) -> None:
    config = random_config(model_type, {})
    assert {key: getattr(config, key) for key in sizes} == sizes


def test_settings_reach_the_configuration_by_own_name_and_by_alias_and_the_rest_follows() -> None:
    by_alias = random_config("gpt2", {"hidden_size": "128", "num_attention_heads": 4, "num_hidden_layers": "2"})
    by_name = random_config("gpt2", {"n_embd": 128, "n_head": "4", "n_layer": 2})
    assert by_alias.to_dict() == by_name.to_dict()
    assert (by_alias.n_embd, by_alias.n_head, by_alias.n_layer) == (128, 4, 2)
    followed = random_config("mistral", {"hidden_size": 64, "num_attention_heads": 8})
    assert (followed.intermediate_size, followed.head_dim, followed.num_key_value_heads) == (256, 8, 2)
    given = random_config("mistral", {"hidden_size": 64, "intermediate_size": 96, "num_key_value_heads": 4})
    assert (given.intermediate_size, given.num_key_value_heads) == (96, 4)
    assert random_config("distilbert", {"intermediate_size": 99}).hidden_dim == 99


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
    assert head is not None and (one.classes, one.loss, one.name) == (3, "classification", "minilm")
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
    assert load_subject(str(tmp_path / "bert")).loss == "masked-lm"
    causal = load_subject(str(tmp_path / "gpt2"))
    assert (causal.loss, causal.classes, causal.anatomy.tied) == ("causal-lm", 300, True)
    assert load_subject(tmp_path / "gpt2", loss="classification").loss == "classification"


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
    assert (subject.loss, subject.name) == ("causal-lm", "GPT2LMHeadModel")
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


@pytest.mark.parametrize("max_length", (32, 6))
def test_wordpiece_is_the_library_s(max_length: int) -> None:
    reference: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(minilm_folder())
    texts = ["Please call me back.", "The biopsy result came back positive, book the surgery!"]
    expected = reference(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    ours = load_tokenizer(minilm_folder(), name="minilm")
    ids, mask = ours.encode(texts, max_length)
    assert torch.equal(ids, expected["input_ids"]) and torch.equal(mask, expected["attention_mask"].bool())
    assert (ours.pad_id, ours.mask_id, ours.vocab_size) == (0, 103, 30522)
    assert ours.decode(ours.encode(["call me now"], 20)[0][0]) == "call me now"


def test_bytes_come_back_as_they_went() -> None:
    tokenizer = ByteTokenizer()
    text = "Grüße, 3 €!"
    ids, mask = tokenizer.encode([text, "a"], 64)
    assert tokenizer.decode(ids[0]) == text and tokenizer.decode(ids[1]) == "a"
    assert ids[1].tolist()[:3] == [257, 97, 258] and int(mask[1].sum()) == 3
    assert tokenizer.encode(["abcdef"], 5)[0].tolist() == [[257, 97, 98, 99, 258]]


def test_the_fallback_is_the_largest_tokenizer_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fallback_tokenizer().name == "minilm-wordpiece"
    assert fallback_tokenizer(30522).name == "minilm-wordpiece"
    assert fallback_tokenizer(30521).name == "bytes"
    monkeypatch.setattr("gradleak.models.tokenizer.DEMO_PACKAGE", "a_package_that_is_not_there")
    assert fallback_tokenizer().name == "bytes"


def test_the_shipped_messages_are_what_the_file_says() -> None:
    folder = resources.files("gradleak") / "data"
    rows = list(csv.DictReader((folder / "messages.csv").read_text(encoding="utf-8").splitlines()))
    pool = load_pool(None)
    assert pool.texts == tuple(row["text"] for row in rows)
    assert pool.label_names == ("routine", "urgent")
    assert pool.labels == tuple(int(row["label"] == "urgent") for row in rows)
    assert pool.size >= 90 and len(set(pool.texts)) == pool.size
    assert all(5 <= len(text.split()) <= 25 for text in pool.texts)
    public = (folder / "public.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(public)) == len(public) >= 200 and not set(public) & set(pool.texts)


def test_text_formats_hold_the_same_records(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first one\n\n  second, two  \n")
    (tmp_path / "a.csv").write_text('id,note,group\n1,first one,9\n2,"second, two",10\n3, ,9\n')
    (tmp_path / "a.jsonl").write_text('{"note": "first one", "group": 9}\n\n{"note": "second, two", "group": 10}\n')
    plain = load_pool(tmp_path / "a.txt")
    table, lines = (
        load_pool(tmp_path / name, text_column="note", label_column="group") for name in ("a.csv", "a.jsonl")
    )
    assert plain.texts == table.texts == lines.texts == ("first one", "second, two")
    assert plain.labels is None and plain.label_names is None
    assert table.label_names == lines.label_names == ("9", "10") and table.labels == (0, 1)
    assert table.fingerprint == lines.fingerprint != plain.fingerprint


def test_images_are_cropped_to_the_center_and_labeled_by_folder(tmp_path: Path) -> None:
    for label, shade in (("dark", 51), ("bright", 204)):
        (tmp_path / label).mkdir()
        wide = np.full((8, 24, 3), 255, dtype=np.uint8)
        wide[:, 8:16] = shade
        Image.fromarray(wide).save(tmp_path / label / "one.png")
    pool = load_pool(tmp_path, image_size=8)
    assert pool.images is not None and pool.images.shape == (2, 3, 8, 8)
    assert pool.label_names == ("bright", "dark") and pool.labels == (0, 1)
    torch.testing.assert_close(pool.images[0], torch.full((3, 8, 8), 0.8))
    torch.testing.assert_close(pool.images[1], torch.full((3, 8, 8), 0.2))
    assert load_pool(tmp_path, image_size=8, channels=1).images.shape == (2, 1, 8, 8)


def test_batches_are_drawn_without_replacement_and_reproducibly() -> None:
    pool, subject = load_pool(None), load_subject("random:bert", settings=SMALL)
    batch, indices = draw_batch(pool, subject, batch_size=pool.size, max_length=200, rng=derive(0, "a"))
    again, same = draw_batch(pool, subject, batch_size=pool.size, max_length=200, rng=derive(0, "a"))
    assert sorted(indices) == list(range(pool.size)) and indices == same
    assert torch.equal(batch.inputs, again.inputs) and torch.equal(batch.labels, again.labels)
    assert subject.tokenizer is not None and pool.texts is not None and pool.labels is not None
    assert [subject.tokenizer.decode(row) for row in batch.records()] == [pool.texts[index] for index in indices]
    assert batch.labels.tolist() == [pool.labels[index] for index in indices]
    assert draw_batch(pool, subject, batch_size=8, max_length=20, rng=derive(1, "a"))[1] != indices[:8]


def test_texts_are_cut_at_the_asked_length_and_at_the_model_s() -> None:
    pool = load_pool(None)
    short = load_subject("random:bert", settings=SMALL | {"max_position_embeddings": 16})
    for asked, expected in ((10, 10), (99, 16)):
        batch, _ = draw_batch(pool, short, batch_size=4, max_length=asked, rng=derive(0))
        assert batch.inputs.shape[1] == expected
        short.logits(inputs=batch.inputs, mask=batch.mask)


def test_causal_targets_are_the_real_tokens(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab\nabcd\n")
    subject = load_subject("random:gpt2", loss="causal-lm", settings=SMALL)
    batch, indices = draw_batch(load_pool(tmp_path / "a.txt"), subject, batch_size=2, max_length=9, rng=derive(0))
    row = batch.labels[indices.index(0)].tolist()
    assert row == [257, 97, 98, 258, IGNORED, IGNORED]


def test_masking_hides_the_published_share_and_keeps_the_record() -> None:
    subject = load_subject("random:bert", loss="masked-lm", settings=SMALL)
    pool = load_pool(None)
    batch, indices = draw_batch(pool, subject, batch_size=40, max_length=300, rng=derive(0))
    assert subject.tokenizer is not None and pool.texts is not None
    hidden = batch.labels != IGNORED
    assert torch.equal(hidden, batch.inputs == subject.tokenizer.mask_id)
    assert not bool((hidden & ~batch.mask).any())
    for row, index in enumerate(indices):
        ordinary = len(pool.texts[index].encode())
        assert abs(int(hidden[row].sum()) - 0.15 * ordinary) <= 0.5
        assert subject.tokenizer.decode(batch.records()[row]) == pool.texts[index]
    places = torch.nonzero(hidden)[:, 1].double() / batch.mask.sum(dim=1).repeat_interleave(hidden.sum(dim=1))
    # About 500 uniform places: their mean has a standard error of 0.013; six of them is one false alarm in 10^9.
    assert abs(float(places.mean()) - 0.5) < 0.08


def test_labels_are_drawn_where_the_data_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"note {number}" for number in range(64)))
    subject = load_subject("random:bert", classes=4, settings=SMALL)
    batch, _ = draw_batch(load_pool(tmp_path / "a.txt"), subject, batch_size=64, max_length=20, rng=derive(0))
    # A class misses all of 64 uniform draws with probability 4 * 0.75^64 < 1e-7.
    assert set(batch.labels.tolist()) == {0, 1, 2, 3}


def test_image_batches_carry_pixels(tmp_path: Path) -> None:
    for name in "ab":
        Image.fromarray(np.full((4, 4), 100, dtype=np.uint8)).save(tmp_path / f"{name}.jpg")
    settings = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    subject = load_subject("random:vit", settings=settings)
    pool = load_pool(tmp_path, image_size=16)
    batch, _ = draw_batch(pool, subject, batch_size=2, max_length=9, rng=derive(0))
    assert batch.inputs.shape == (2, 3, 16, 16) and batch.modality == "image"
    assert subject.logits(pixels=batch.inputs).shape == (2, 2)
