"""Why: what an adversary believes of text before it sees an update. Three sources: nothing (every token alike), word counts of
public text, a causal language model from a local folder. Nothing is downloaded. Must not know updates, attacks or private data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.core.errors import DataError, ModelError
from gradleak.core.loss import CAUSAL_LM
from gradleak.mechanics.probing.probe import chunks
from gradleak.models import Subject, Tokenizer, load_subject
from gradleak.span.language.ngram import NGram

UNIFORM, PUBLIC = "uniform", "public"
"""Names that stand for no file: every token alike, and the public sentences that gradleak ships."""
_PROBE = "The river rises every spring, 12 miles from here."
_LONGEST = 100_000


class LanguageModel(Protocol):
    """Probabilities of token sequences, in nats."""

    def following(self, ids: Int64[Tensor, "sentences length"]) -> Float[Tensor, "sentences vocab"]:
        """log p(next token | sentence so far); the sentence may be empty."""
        ...

    def each(self, ids: Int64[Tensor, "sentences length"]) -> Float[Tensor, "sentences length"]:
        """log p of every token given those before it."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Uniform:
    """Every token of the vocabulary alike: no prior, for the control."""

    vocab_size: int

    def following(self, ids: Int64[Tensor, "sentences length"]) -> Float[Tensor, "sentences vocab"]:
        return torch.full(
            (len(ids), self.vocab_size), -math.log(self.vocab_size), dtype=torch.float64, device=ids.device
        )

    def each(self, ids: Int64[Tensor, "sentences length"]) -> Float[Tensor, "sentences length"]:
        return torch.full(ids.shape, -math.log(self.vocab_size), dtype=torch.float64, device=ids.device)


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalModel:
    """A causal language model. Without a token for the beginning of a text the first token is taken as uniform."""

    subject: Subject
    vocab_size: int
    begin: int | None

    def following(self, ids: Int64[Tensor, "sentences length"]) -> Float[Tensor, "sentences vocab"]:
        rows = self._begun(ids)
        if not rows.shape[1]:
            return Uniform(vocab_size=self.vocab_size).following(ids)
        found = [self._logs(rows[part])[:, -1] for part in self._chunks(rows)]
        return torch.cat(found).to(ids.device)

    def each(self, ids: Int64[Tensor, "sentences length"]) -> Float[Tensor, "sentences length"]:
        rows = self._begun(ids)
        shift = rows.shape[1] - ids.shape[1]
        made = Uniform(vocab_size=self.vocab_size).each(ids)
        for part in self._chunks(rows) if rows.shape[1] > 1 else ():
            logs = self._logs(rows[part])[:, :-1]
            told = logs.gather(2, rows[part, 1:].to(logs.device).unsqueeze(2)).squeeze(2)
            made[part, 1 - shift :] = told.to(made.device)
        return made

    def _begun(self, ids: Tensor) -> Tensor:
        return ids if self.begin is None else torch.nn.functional.pad(ids, (1, 0), value=self.begin)

    def _chunks(self, rows: Tensor) -> list[slice]:
        return list(chunks(len(rows), rows.shape[1] * self.vocab_size))

    @torch.no_grad()
    def _logs(self, rows: Tensor) -> Float[Tensor, "sentences length vocab"]:
        own = next(self.subject.module.parameters()).device
        logits = self.subject.logits(inputs=rows.to(own)).double()[..., : self.vocab_size]
        missing = self.vocab_size - logits.shape[-1]
        # Rows that only the audited model has stand for no text.
        padded = torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing else logits
        return padded.log_softmax(dim=-1).clamp(min=torch.finfo(torch.float32).min)


def check_prior(name: str) -> str:
    """What is wrong with the name of a prior, or nothing; reads no file."""
    path = Path(name or "?").expanduser()
    if name in (UNIFORM, PUBLIC) or path.is_dir() or (path.is_file() and path.suffix == ".txt"):
        return ""
    return (
        f"{name!r} is no language prior. Name a local folder with a Hugging Face causal language model, a .txt file of public "
        f"text, {PUBLIC!r} (the sentences that gradleak ships) or {UNIFORM!r} (no preference); nothing is downloaded."
    )


def load_prior(name: str, subject: Subject) -> LanguageModel:
    """The prior of that name over the vocabulary of ``subject``.

    Args:
        name: ``uniform``, ``public``, a ``.txt`` file (counts of its words; must not hold what is audited), or a folder with a
            causal language model that reads the same tokens.

    Raises:
        DataError: if there is no such file or folder, or the text is empty.
        ModelError: if the folder holds no causal language model, or its tokens are others.
    """
    wrong = check_prior(name)
    if wrong:
        raise DataError(wrong)
    vocab_size = subject.anatomy.vocab_size
    if name == UNIFORM:
        return Uniform(vocab_size=vocab_size)
    if subject.tokenizer is None:
        raise ModelError(f"{subject.name} has no tokenizer, so no text can be read as its tokens. Use prior={UNIFORM}.")
    path = Path(name).expanduser()
    if name != PUBLIC and path.is_dir():
        return _causal(path, subject, subject.tokenizer)
    if name == PUBLIC:
        text = resources.files("gradleak.data").joinpath("public.txt").read_text(encoding="utf-8")
    else:
        text = path.read_text(encoding="utf-8", errors="replace")
    return NGram.of(read_lines(text, name, subject.tokenizer), vocab_size=vocab_size)


def read_lines(text: str, name: str, tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of every line that is not empty, framed as the tokenizer frames a record. Raises ``DataError``."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"The text {name!r} of the prior is empty. Give a file with a text per line.")
    return [ids[keep].tolist() for ids, keep in (_encoded(line, tokenizer) for line in lines)]


def _encoded(line: str, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    ids, mask = tokenizer.encode([line], _LONGEST)
    return ids[0], mask[0]


def _causal(path: Path, subject: Subject, tokenizer: Tokenizer) -> CausalModel:
    model = load_subject(path, loss=CAUSAL_LM.name)
    own = model.tokenizer
    same = own is not None and own.vocab_size == tokenizer.vocab_size
    if own is None or not same or not torch.equal(_encoded(_PROBE, own)[0], _encoded(_PROBE, tokenizer)[0]):
        theirs = "none" if own is None else f"{own.name} with {own.vocab_size} tokens"
        raise ModelError(
            f"The language model in {str(path)!r} reads other tokens ({theirs}) than {subject.name} ({tokenizer.name} with "
            f"{tokenizer.vocab_size}). A prior must be over the audited model's tokens: give one with the same tokenizer."
        )
    begin = getattr(model.module.config, "bos_token_id", None)
    known = isinstance(begin, int) and 0 <= begin < model.anatomy.vocab_size
    return CausalModel(
        subject=model, vocab_size=subject.anatomy.vocab_size, begin=int(begin) if known and begin is not None else None
    )
