"""A folder that peft wrote is the base with the adapter in it, as the peft wrapper itself is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

import gradleak
from gradleak.core.errors import ModelError, UnsafeFileError
from gradleak.models.silence import quiet
from tests.support.captured import encoded, subject_of

pytestmark = pytest.mark.oracle

TEXTS = ("the surgery is set for tuesday",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter that has trained already, and the gradient of one batch as peft names it."""
    place = tmp_path_factory.mktemp("peft")
    subject = subject_of()
    subject.module.save_pretrained(place / "base")
    config = LoraConfig(r=16, target_modules=["query", "key", "value"], task_type="SEQ_CLS")
    with quiet():
        wrapped: Any = get_peft_model(gradleak.load_subject(str(place / "base")).module, config)
    rng = torch.Generator().manual_seed(0)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            value.data.normal_(std=0.02, generator=rng)
    wrapped.eval()
    wrapped.peft_config["default"].base_model_name_or_path = str(place / "base")
    with quiet():
        wrapped.save_pretrained(place / "adapter")
    ids, mask, labels = encoded(subject, TEXTS)
    torch.nn.functional.cross_entropy(wrapped(input_ids=ids, attention_mask=mask.long()).logits, labels).backward()
    named = {name: p.grad for name, p in wrapped.named_parameters() if p.grad is not None}
    save_file(named, place / "named.safetensors")
    other = {name.replace(".default.", ".mine."): t for name, t in named.items()}
    save_file(other, place / "other.safetensors")
    state = get_peft_model_state_dict(wrapped)
    short = {name.replace(".default", "").replace(".modules_to_save", ""): t for name, t in named.items()}
    assert set(short) == set(state)
    save_file(short, place / "short.safetensors")
    return place


@pytest.mark.contract
@pytest.mark.parametrize("file", ["named", "other", "short"])
def test_every_way_to_name_an_adapter_fits_and_its_tokens_are_read(folder: Path, file: str) -> None:
    inspection = gradleak.inspect_update(folder / f"{file}.safetensors", str(folder / "adapter"))
    assert inspection.kind == "gradient"
    assert inspection.names is not None
    assert (inspection.names.unknown, inspection.names.missing) == ((), ())
    assert inspection.span is not None
    assert inspection.span.tokens > 0


@pytest.mark.contract
def test_the_weights_of_an_adapter_are_named_as_such(folder: Path) -> None:
    inspection = gradleak.inspect_update(folder / "adapter", str(folder / "adapter"))
    assert inspection.kind == "adapter"
    assert "--reference" in inspection.remarks[0]


@pytest.mark.errors
def test_what_is_missing_has_a_message(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))

    def written(name: str, **changes: object) -> Path:
        place = tmp_path / name
        place.mkdir()
        (place / "adapter_config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
        return place

    with pytest.raises(ModelError, match="lacks adapter_model"):
        gradleak.load_subject(str(written("empty")))
    pickled = written("pickled")
    (pickled / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(UnsafeFileError, match="pickled"):
        gradleak.load_subject(str(pickled))
    nameless = written("nameless", base_model_name_or_path=None)
    save_file({"a": torch.ones(1)}, nameless / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="does not name the base"):
        gradleak.load_subject(str(nameless))
