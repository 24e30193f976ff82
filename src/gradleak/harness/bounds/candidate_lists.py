"""What an adversary believes before it sees anything is part of the result. A prior here is a list of candidate records
with a name, so that two numbers are only compared if they speak of the same list. Holds private data, like a pool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.errors import DataError, UnknownNameError
from gradleak.core.rng import derive
from gradleak.harness.request.data import Pool, draw_batch
from gradleak.models import Subject

CANDIDATES = 512
MOST = 4096
"""More candidates than this would take a matrix of more than 128 MB, many times over."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidatePrior:
    """K candidate records, each equally likely.

    Attributes:
        name: ``sentences``, ``images``, ``token`` or ``attribute``.
        description: how the list was made, with no private content.
        batch: the candidates, one a record.
    """

    name: str
    description: str
    batch: Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is asked of a prior.

    Attributes:
        count: K, at least 2, or None for as many as there are, at most ``CANDIDATES``.
        values: for ``attribute``: the words that the secret is one of; the label's classes if empty.
        max_length: tokens per record.
        seed: of the draws.
    """

    count: int | None
    values: tuple[str, ...]
    max_length: int
    seed: int


def make_prior(name: str, pool: Pool, subject: Subject, wanted: Wanted) -> CandidatePrior:
    """The candidates of a named prior.

    Raises:
        UnknownNameError: for an unknown prior.
        DataError: if the data or the model does not fit it, or K is out of range.
    """
    if name not in PRIORS:
        raise UnknownNameError("prior", name, PRIORS)
    if wanted.count is not None and not 2 <= wanted.count <= MOST:
        raise DataError(f"--candidates {wanted.count} is out of range. Give a number from 2 to {MOST}.")
    takes = "image" if name == "images" else "text" if name in ("sentences", "token") else subject.modality
    if subject.modality != takes:
        raise DataError(
            f"The prior {name} is for {takes} records; this model takes {subject.modality}s. Choose another prior."
        )
    if wanted.values and name != "attribute":
        raise DataError(f"--values belongs to --prior attribute, not to {name}. Leave one of them out.")
    return PRIORS[name](pool, subject, wanted)


def _sentences(pool: Pool, subject: Subject, wanted: Wanted) -> CandidatePrior:
    """Records of the data: the adversary knows the list and not which one was used."""
    texts = tuple(dict.fromkeys(pool.texts or ()))
    if len(texts) < 2:
        raise DataError(f"A list of sentences needs at least two different records; {pool.name} holds {len(texts)}.")
    count = min(wanted.count or CANDIDATES, len(texts))
    if wanted.count is not None and wanted.count > len(texts):
        raise DataError(
            f"--candidates {wanted.count} is more than the data: {pool.name} holds {len(texts)} different records. "
            f"Give {len(texts)} or less, or more data."
        )
    first = {text: place for place, text in reversed(tuple(enumerate(pool.texts or ())))}
    kept = tuple(first[text] for text in texts)
    distinct = replace(pool, texts=texts, labels=None if pool.labels is None else tuple(pool.labels[i] for i in kept))
    rng = derive(wanted.seed, "prior", "sentences")
    batch, _ = draw_batch(distinct, subject, batch_size=count, max_length=wanted.max_length, rng=rng)
    return CandidatePrior(
        name="sentences",
        description=f"one of {count} records of {pool.name}, with its label, equally likely",
        batch=batch,
    )


def _images(pool: Pool, subject: Subject, wanted: Wanted) -> CandidatePrior:
    """Pictures of the data: the adversary knows the list and not which one was used."""
    count = min(wanted.count or CANDIDATES, pool.size)
    if wanted.count is not None and wanted.count > pool.size:
        raise DataError(f"--candidates {wanted.count} is more than the data: {pool.name} holds {pool.size} pictures.")
    if count < 2:
        raise DataError(f"A list of pictures needs at least two; {pool.name} holds {pool.size}.")
    rng = derive(wanted.seed, "prior", "images")
    batch, _ = draw_batch(pool, subject, batch_size=count, max_length=wanted.max_length, rng=rng)
    return CandidatePrior(
        name="images",
        description=f"one of {count} pictures of {pool.name}, with its label, equally likely",
        batch=batch,
    )


def _token(pool: Pool, subject: Subject, wanted: Wanted) -> CandidatePrior:
    """One record with one token unknown: everything else is given."""
    assert subject.tokenizer is not None
    batch = _one(pool, subject, wanted)
    rng = derive(wanted.seed, "prior", "token")
    place = _ordinary_place(subject, batch, rng)
    true = int(batch.inputs[0, place])
    special = subject.tokenizer.special_ids
    ordinary = [token for token in range(subject.tokenizer.vocab_size) if token not in special and token != true]
    count = min(wanted.count or CANDIDATES, len(ordinary) + 1)
    others = [ordinary[i] for i in torch.randperm(len(ordinary), generator=rng)[: count - 1].tolist()]
    return CandidatePrior(
        name="token",
        description=f"one token of one record of {pool.name} unknown, one of {count} of the vocabulary, equally likely",
        batch=_variants(batch, place, [true, *others]),
    )


def _attribute(pool: Pool, subject: Subject, wanted: Wanted) -> CandidatePrior:
    """One record with one attribute unknown: a word of a given list, or its label."""
    if not wanted.values:
        return _label(pool, subject, wanted)
    values = tuple(dict.fromkeys(value.strip() for value in wanted.values))
    if len(values) < 2 or "" in values:
        raise DataError(f"--values needs at least two different words, got {', '.join(wanted.values)!r}.")
    records = list(pool.texts or ())
    for place in torch.randperm(len(records), generator=derive(wanted.seed, "prior", "attribute")).tolist():
        text = records[place]
        held = next((value for value in values if value in text), None)
        if held is not None:
            texts = tuple(text.replace(held, value) for value in values)
            labels = None if pool.labels is None else (pool.labels[place],) * len(values)
            variants = replace(pool, texts=texts, labels=labels)
            batch = _in_order(variants, subject, wanted)
            return CandidatePrior(
                name="attribute",
                description=f"one of {len(values)} given words in one record of {pool.name}, equally likely",
                batch=batch,
            )
    raise DataError(
        f"No record of {pool.name} holds one of the values {', '.join(values)}. Name words that occur in it."
    )


def _label(pool: Pool, subject: Subject, wanted: Wanted) -> CandidatePrior:
    if not subject.loss.classifies_records:
        raise DataError(
            "A language model has no label to hide. Name the words that the secret is one of: --values diabetes,cancer,asthma."
        )
    batch = _one(pool, subject, wanted)
    count = subject.classes
    return CandidatePrior(
        name="attribute",
        description=f"the label of one record of {pool.name}, one of {count} classes, equally likely",
        batch=Batch(
            inputs=batch.inputs.repeat_interleave(count, 0),
            mask=batch.mask.repeat_interleave(count, 0),
            labels=torch.arange(count),
        ),
    )


PRIORS: Mapping[str, Callable[[Pool, Subject, Wanted], CandidatePrior]] = MappingProxyType(
    {"sentences": _sentences, "images": _images, "token": _token, "attribute": _attribute}
)


def _one(pool: Pool, subject: Subject, wanted: Wanted) -> Batch:
    rng = derive(wanted.seed, "prior", "record")
    return draw_batch(pool, subject, batch_size=1, max_length=wanted.max_length, rng=rng)[0]


def _in_order(pool: Pool, subject: Subject, wanted: Wanted) -> Batch:
    """All records of a pool in their order; where labels or hidden tokens are drawn, the same draw for each of them."""
    rows = [
        draw_batch(
            replace(pool, texts=(text,), labels=None if pool.labels is None else (pool.labels[place],)),
            subject,
            batch_size=1,
            max_length=wanted.max_length,
            rng=derive(wanted.seed, "prior", "record"),
        )[0]
        for place, text in enumerate(pool.texts or ())
    ]
    return _padded(rows)


def _padded(rows: Sequence[Batch]) -> Batch:
    length = max(row.inputs.shape[1] for row in rows)

    def widen(tensor: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, length - tensor.shape[1]), value=value)

    labels = [row.labels if row.labels.ndim == 1 else widen(row.labels, -100) for row in rows]
    return Batch(
        inputs=torch.cat([widen(row.inputs, int(row.inputs[0, 0])) for row in rows]),
        mask=torch.cat([torch.nn.functional.pad(row.mask, (0, length - row.mask.shape[1])) for row in rows]),
        labels=torch.cat(labels),
    )


def _ordinary_place(subject: Subject, batch: Batch, rng: torch.Generator) -> int:
    """A position that holds a token of the text that the model is shown, drawn evenly."""
    assert subject.tokenizer is not None
    special = torch.tensor(sorted(subject.tokenizer.special_ids), dtype=torch.int64)
    places = (batch.mask[0] & ~torch.isin(batch.inputs[0], special)).nonzero().flatten()
    if len(places) == 0:
        raise DataError("The drawn record has no ordinary token that could be the secret. Give longer records.")
    return int(places[torch.randint(len(places), (), generator=rng)])


def _variants(batch: Batch, place: int, tokens: Sequence[int]) -> Batch:
    """One record a token, with the token at ``place``; where it is also a target of the loss, there too."""
    count = len(tokens)
    values = torch.tensor(tokens)
    inputs, labels = batch.inputs.repeat(count, 1), batch.labels.repeat(count, *[1] * (batch.labels.ndim - 1))
    if labels.ndim == 2:
        targeted = labels[:, place] == inputs[:, place]
        labels[:, place] = torch.where(targeted, values, labels[:, place])
    inputs[:, place] = values
    return Batch(inputs=inputs, mask=batch.mask.repeat(count, 1), labels=labels)
