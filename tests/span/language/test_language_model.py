"""Language priors against their definitions: sums to one, counts by hand, and the library's own loss of a causal model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from gradleak.core.errors import DataError, ModelError
from gradleak.models import Subject, load_subject
from gradleak.span.language.language_model import CausalModel, Uniform, load_prior

pytestmark = pytest.mark.oracle

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 260}


def byte_subject(**settings: int) -> Subject:
    return load_subject("random:gpt2", loss="causal-lm", settings=SIZES | settings)


def save(subject: Subject, folder: Path) -> None:
    module = subject.module
    assert isinstance(module, PreTrainedModel)
    module.save_pretrained(folder)


@pytest.mark.parametrize("name", ["uniform", "public"])
def test_each_token_is_what_follows(name: str) -> None:
    prior, text = load_prior(name, byte_subject()), b"The river rises"
    ids = torch.tensor([list(text)])
    each = prior.each(ids)[0]
    told = [float(prior.following(ids[:, :p])[0, token]) for p, token in enumerate(text)]
    assert each.tolist() == pytest.approx(told)
    assert float(prior.following(ids).exp().sum()) == pytest.approx(1.0)


def test_public_text_is_likelier_than_its_reverse() -> None:
    prior, text = load_prior("public", byte_subject()), b"a letter from the bank"
    forth, back = prior.each(torch.tensor([list(text), list(text[::-1])])).sum(1).tolist()
    assert forth > back + 5


@pytest.mark.parametrize("begin", [None, 257])
def test_a_causal_model_says_what_the_library_does(begin: int | None) -> None:
    subject = byte_subject()
    prior = CausalModel(subject=subject, vocab_size=260, begin=begin)
    ids = torch.randint(256, (3, 7), generator=torch.Generator().manual_seed(0))
    rows = ids if begin is None else torch.nn.functional.pad(ids, (1, 0), value=begin)
    logs = subject.module(input_ids=rows).logits.detach().double().log_softmax(-1)
    told = logs[:, :-1].gather(2, rows[:, 1:].unsqueeze(2)).squeeze(2)
    each = prior.each(ids)
    assert torch.allclose(each[:, 1 - (begin is not None) :], told, atol=1e-5)
    if begin is None:
        assert torch.equal(each[:, 0], Uniform(vocab_size=260).each(ids)[:, 0])
    assert torch.allclose(prior.following(ids[:, :4])[torch.arange(3), ids[:, 4]], each[:, 4], atol=1e-5)


def test_a_folder_with_a_causal_model(tmp_path: Path) -> None:
    save(byte_subject(), tmp_path)
    prior = load_prior(str(tmp_path), byte_subject(hidden_size=64))
    assert isinstance(prior, CausalModel)
    assert float(prior.following(torch.tensor([[1, 2]])).exp().sum()) == pytest.approx(1.0)


def test_a_model_of_other_tokens_is_refused(tmp_path: Path) -> None:
    save(byte_subject(vocab_size=30522), tmp_path)
    with pytest.raises(ModelError, match=r"reads other tokens.*30522.*than random:gpt2.*260"):
        load_prior(str(tmp_path), byte_subject())


def test_a_folder_without_a_model_and_a_file_without_text(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_prior(str(tmp_path), byte_subject())
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataError, match="is empty"):
        load_prior(str(empty), byte_subject())
    with pytest.raises(DataError, match="is no language prior"):
        load_prior("gpt2", byte_subject())
