"""What is this file? The first question about an update that somebody holds, answered from its numbers, its names and the model.
Runs no attack and must not know any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradleak.core.errors import DataError, NotApplicableError
from gradleak.core.knowledge import View
from gradleak.core.update import Update, all_finite
from gradleak.harness.captured.kinds import Kind, KindFinding, find_kind
from gradleak.harness.captured.names import Names, map_names, own_names
from gradleak.harness.captured.numbers import Numbers, read_numbers
from gradleak.harness.captured.tensors import read_tensors
from gradleak.models import Subject, load_subject
from gradleak.span.candidates.window import candidates_of
from gradleak.span.reading.evidence import AttackInput
from gradleak.span.reading.observed_layer import first_layer

SUBTRACT = (
    "These are whole weights, not an update. Subtract the weights that the round began with: give them with --reference WEIGHTS "
    "(a .safetensors file, a checkpoint or an adapter folder), and the difference is read."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanFinding:
    """Whether the update fits the model's vocabulary.

    Attributes:
        rank, width: directions of the first attention's input that the update holds, of so many.
        tokens: number of tokens of the vocabulary that lie in them.
        noisy: whether the directions were cut by noise, which may hide tokens.
    """

    rank: int
    width: int
    tokens: int
    noisy: bool

    @property
    def foreign(self) -> bool:
        """Clear directions, and no token of this vocabulary in them."""
        return not self.tokens and not self.noisy and 2 * self.rank <= self.width


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What a captured file is.

    Attributes:
        subtracted: whether reference weights were taken off before.
        span: None without a model, or where the first attention's gradient was not shared.
        remarks: sentences on what does not fit, and what to do.
    """

    kind: Kind
    evidence: tuple[str, ...]
    sign: int | None
    subtracted: bool
    tensors: int
    numbers: Numbers
    names: Names | None
    span: SpanFinding | None
    remarks: tuple[str, ...]

    def to_plain(self) -> dict[str, Any]:
        """As ``gradleak inspect --json`` prints it."""
        numbers = self.numbers.to_plain()
        return {
            "kind": self.kind,
            "evidence": list(self.evidence),
            "sign": self.sign,
            "subtracted": self.subtracted,
            "tensors": self.tensors,
            "format": numbers.pop("format"),
            "scale": {name: numbers.pop(name) for name in ("norm", "rms", "clip", "step")},
            "noise": numbers.pop("noise"),
            "numbers": numbers,
            "names": None if self.names is None else self.names.to_plain(),
            "span": None
            if self.span is None
            else {
                "rank": self.span.rank,
                "width": self.span.width,
                "tokens": self.span.tokens,
                "noisy": self.span.noisy,
            },
            "remarks": list(self.remarks),
        }


def inspect_update(
    update: str | Path | Mapping[str, Tensor],
    model: str | Path | nn.Module | Subject | None = None,
    *,
    reference: str | Path | Mapping[str, Tensor] | None = None,
    loss: str | None = None,
    settings: Mapping[str, object] | None = None,
    tokenizer: Any = None,
    seed: int = 0,
) -> Inspection:
    """Says what an update is: gradient, delta, whole weights or an adapter's; its format, noise and names.

    Args:
        update: a ``.safetensors`` file, a folder of one (a capture, shards, an adapter), or name → tensor.
        model: what was trained; without it names and vocabulary are not looked at.
        reference: the weights that the round began with; they are taken off.
        loss, settings, tokenizer, seed: of the model, as for ``load_subject``.

    Raises:
        UsageError: with cause and remedy.
    """
    tensors = read_given(update, "update")
    subject = model if isinstance(model, Subject) else None
    if model is not None and subject is None:
        subject = load_subject(
            model if isinstance(model, (str, nn.Module)) else str(model),
            loss=loss,
            settings=settings or {},
            tokenizer=tokenizer,
            seed=seed,
        )
    start = None if reference is None else read_given(reference, "reference")
    return inspect_tensors(tensors, subject, reference=start)[0]


def inspect_tensors(
    tensors: Mapping[str, Tensor],
    subject: Subject | None,
    *,
    reference: Mapping[str, Tensor] | None = None,
    vocabulary: bool = True,
) -> tuple[Inspection, dict[str, Tensor]]:
    """The inspection, and the tensors as an update: under the model's names, without the reference.

    Whole weights without a reference stay as they are; the kind says so.

    Args:
        vocabulary: whether the tokens of the model are compared, which takes longest.
    """
    names, own = _named(tensors, subject)
    weights = None if subject is None else {n: v for n, v in subject.module.named_parameters()}
    start = None if reference is None else _named(reference, subject)[1]
    numbers = read_numbers(own or tensors)
    matched = len(tensors) if names is None else len(names.own)
    before = weights if start is None else {**(weights or {}), **start}
    finding = find_kind(own or tensors, numbers, before, known=matched, given=len(tensors))
    remarks: list[str] = []
    subtracted = start is not None and finding.kind in {"weights", "adapter"}
    if subtracted and start is not None:
        own, finding = _difference(own, start, finding)
        numbers = read_numbers(own)
    elif finding.kind in {"weights", "adapter"}:
        remarks.append(SUBTRACT)
    elif start is not None:
        remarks.append(f"The file holds no whole weights but a {finding.kind}, so the reference was not taken off.")
    span = None
    if vocabulary and subject is not None and finding.kind in {"gradient", "delta"} and own:
        span = _span(own, subject)
    inspection = Inspection(
        kind=finding.kind,
        evidence=finding.evidence,
        sign=finding.sign,
        subtracted=subtracted,
        tensors=len(tensors),
        numbers=numbers,
        names=names,
        span=span,
        remarks=(*remarks, *_remarks(names, subject, span)),
    )
    return inspection, own


def read_given(given: str | Path | Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Name → floating tensor of what was given.

    Raises:
        DataError: if there is none, or an entry is NaN or infinite.
    """
    read = dict(given) if isinstance(given, Mapping) else read_tensors(Path(given), what=what)
    tensors = {name: tensor for name, tensor in read.items() if tensor.is_floating_point() and tensor.numel()}
    if not tensors:
        raise DataError(f"The {what} holds no tensor of floating numbers. Give parameter name → tensor.")
    broken = [name for name, tensor in tensors.items() if not all_finite(tensor)]
    if broken:
        raise DataError(
            f"The {what} of {broken[0]!r} holds NaN or infinite entries (and {len(broken) - 1} more tensors do). A step of mixed "
            "precision that overflowed is skipped by its scaler; capture the next one."
        )
    return tensors


def _named(tensors: Mapping[str, Tensor], subject: Subject | None) -> tuple[Names | None, dict[str, Tensor]]:
    if subject is None:
        return None, dict(tensors)
    names = map_names(tensors, subject)
    return names, own_names(tensors, names)


def _difference(
    own: Mapping[str, Tensor], start: Mapping[str, Tensor], finding: KindFinding
) -> tuple[dict[str, Tensor], KindFinding]:
    shared = [name for name in own if name in start and own[name].shape == start[name].shape]
    if not shared:
        raise DataError(
            f"The reference shares no tensor with the weights: it has {next(iter(start))!r}, they have {next(iter(own))!r}. Give the "
            "weights of the same model that the round began with."
        )
    changes = {name: own[name].float() - start[name].float() for name in shared}
    moved = {name: change for name, change in changes.items() if bool((change != 0).any())}
    if not moved:
        raise DataError("The weights equal the reference: nothing was trained, or the same file was given twice.")
    return moved, KindFinding(
        kind="delta",
        sign=1,
        evidence=(*finding.evidence, f"The reference was taken off; {len(moved)} of {len(shared)} tensors moved."),
    )


def _span(own: Mapping[str, Tensor], subject: Subject) -> SpanFinding | None:
    """Rank of the first attention's input and tokens in it; None where the update does not tell."""
    if subject.modality != "text":
        return None
    view = View(
        declared=frozenset({"subject", "trainer", "stages", "batch_size", "seq_len", "mask", "labels"}),
        _facts={"subject": subject},
    )
    try:
        case = AttackInput.of(Update(own), view)
        first = first_layer(
            case.readable, case.model, noise_std=case.noise_std, summands=case.summands, mismatch=case.mismatch
        )
    except NotApplicableError:
        return None
    try:
        tokens = candidates_of(case, first, torch.Generator().manual_seed(0)).bag().numel()
    except NotApplicableError:
        tokens = 0
    return SpanFinding(rank=first.space.rank, width=first.space.features, tokens=tokens, noisy=first.space.noisy)


def _remarks(names: Names | None, subject: Subject | None, span: SpanFinding | None) -> list[str]:
    remarks: list[str] = []
    if names is not None and subject is not None:
        if names.unknown:
            remarks.append(
                f"{len(names.unknown)} names fit nothing in {subject.name}, first {names.unknown[0]!r}: another head or another model. "
                f"{len(names.own)} tensors fit and are read."
            )
        if names.misfits:
            name, given, wanted = names.misfits[0]
            remarks.append(
                f"{len(names.misfits)} tensors have another shape than in {subject.name}, first {name!r}: {given} in the file, {wanted} in "
                "the model."
            )
    if span is not None and span.foreign:
        remarks.append(
            f"The first attention's gradient has rank {span.rank} of {span.width}, but no token of this vocabulary fits: is this the "
            "model, with the weights that the round began with, and its tokenizer?"
        )
    return remarks
