"""Attacks on an update whose truth nobody here holds. There is no judge: what an attack proposes stands with its status, the
probability that it claims for its tokens, its objective and its certificate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from gradleak.core.attack import Attack, Clock, Reconstruction
from gradleak.core.errors import UsageError
from gradleak.core.knowledge import Observation
from gradleak.core.rng import derive
from gradleak.core.specs import build, spec_of
from gradleak.harness.captured.files import read_manifest
from gradleak.harness.captured.inspection import Inspection
from gradleak.harness.captured.loading import load_held
from gradleak.harness.request import catalogue, defaults
from gradleak.harness.request.shares import adapted
from gradleak.harness.running.cell import finite, propose, worst_tensors
from gradleak.mechanics.client.trainer import LocalTraining
from gradleak.models import Subject, Tokenizer, load_subject


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one attack proposes for a captured update, with how much of the model it had."""

    attack: Attack
    reconstruction: Reconstruction
    tokenizer: Tokenizer | None
    loaded: str
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return spec_of(self.attack).type

    def to_plain(self) -> dict[str, Any]:
        """Everything but the recovered content."""
        found = self.reconstruction
        return {
            "attack": spec_of(self.attack).to_plain(),
            "status": found.status.name,
            "sentence": found.status.value,
            "message": found.message,
            "ordered": found.ordered,
            "lengths": [record.shape[0] if record.ndim == 1 else list(record.shape) for record in found.records],
            "labels": None if found.labels is None else list(found.labels),
            "objective": finite(found.objective),
            "certificate": finite(found.certificate),
            "worst_tensors": worst_tensors(found),
            "confidence": [[round(sure, 4) for sure in each.tolist()] for each in found.confidence],
            "adapted": list(found.adapted),
            "statistics": {name: finite(value) for name, value in found.statistics.items()},
            "loaded": self.loaded,
            "seconds": round(self.seconds, 3),
        }

    def contents(self) -> list[str]:
        """The recovered records in clear; images by their shape, which ``save_findings`` stores."""
        if self.tokenizer is None:
            return [f"image {tuple(record.shape)}" for record in self.reconstruction.records]
        if not self.reconstruction.ordered:
            return [_bag(record.tolist(), self.tokenizer) for record in self.reconstruction.records]
        return [self.tokenizer.decode(record) for record in self.reconstruction.records]

    def redacted(self) -> list[str]:
        """What may be shown without being asked: how much was recovered."""
        if self.tokenizer is None:
            return [f"image {tuple(record.shape)}" for record in self.reconstruction.records]
        kind = "tokens" if self.reconstruction.ordered else "tokens, in no order"
        return [f"{record.numel()} {kind}" for record in self.reconstruction.records]


class Listener(Protocol):
    """Hears how far the attacks are."""

    def started(self, name: str, number: int, total: int) -> Callable[[float, str], None] | None:
        """Returns what the attack reports its own progress to."""
        ...

    def finished(self, finding: Finding, number: int, total: int) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Attacked:
    """All that came of attacking one captured update."""

    inspection: Inspection
    findings: tuple[Finding, ...]
    subject: Subject
    remarks: tuple[str, ...]


def attack_capture(
    path: str | Path,
    model: Any,
    *,
    reference: str | Path | None = None,
    attacks: str | None = None,
    loss: str | None = None,
    settings: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    seed: int = 0,
    budget_seconds: float | None = None,
    first_blocks: int | None = None,
    listener: Listener | None = None,
) -> Attacked:
    """Reads a captured update and runs attacks on it.

    Args:
        model: what ``load_subject`` takes; loss and number of classes come from the manifest where it tells them.
        reference: the weights that the round began with, to be taken off where whole weights were captured.
        attacks: names; if None those that read what the inspection says that it is.
        budget_seconds: for all attacks together, shared evenly.
        first_blocks: load only the embeddings, this many blocks and the head, and only their tensors of the update.

    Raises:
        UsageError: with cause and remedy, before the model is loaded where that is possible.
    """
    if first_blocks is not None and str(model).startswith("random:"):
        raise UsageError(
            f"The first blocks of {model} are drawn on their own and are not those of the whole model that was trained. "
            "Save the model to a folder, or leave --first-blocks out."
        )
    chosen = None if attacks is None else catalogue.make_attacks(attacks)
    manifest = read_manifest(path)
    classes = {} if manifest.classes is None or manifest.classes < 2 else {"classes": manifest.classes}
    subject = load_subject(
        model,
        loss=loss or manifest.loss,
        settings=settings or {},
        tokenizer=tokenizer,
        seed=seed,
        first_blocks=first_blocks,
        **classes,
    )
    # A model that brings its own adapter is the one that was trained; the manifest's settings only describe it.
    if manifest.training is not None and not subject.anatomy.adapters:
        subject = adapted(subject, build(LocalTraining, manifest.training), seed=seed)
    held = load_held(path, subject, reference=reference)
    findings = attack_observation(
        held.observation,
        subject,
        attacks=chosen or catalogue.make_attacks(_fitting(held.inspection, subject)),
        seed=seed,
        budget_seconds=budget_seconds,
        listener=listener,
    )
    return Attacked(inspection=held.inspection, findings=findings, subject=subject, remarks=held.remarks)


def _fitting(inspection: Inspection, subject: Subject) -> str:
    """The default attacks, and those for what only they read: signs, and many records in adapters."""
    names = [defaults.ATTACKS[subject.modality]]
    if subject.modality == "text" and (inspection.numbers.adam or inspection.numbers.format == "signs"):
        names.append("sign_span")
    if subject.anatomy.adapters:
        names.append("adapter_bag")
    return ",".join(names)


def attack_observation(
    observation: Observation,
    subject: Subject,
    *,
    attacks: tuple[Attack, ...] | None = None,
    seed: int = 0,
    budget_seconds: float | None = None,
    listener: Listener | None = None,
) -> tuple[Finding, ...]:
    """Runs attacks, the default ones if None, on one observation."""
    chosen = attacks or catalogue.make_attacks(defaults.ATTACKS[subject.modality])
    share = None if budget_seconds is None else budget_seconds / len(chosen)
    findings: list[Finding] = []
    for number, attack in enumerate(chosen, start=1):
        name = spec_of(attack).type
        hear = None if listener is None else listener.started(name, number, len(chosen))
        start = time.perf_counter()
        proposal = propose(
            attack, observation, subject.modality, rng=derive(seed, "attack", spec_of(attack)), clock=Clock(share, hear)
        )
        finding = Finding(
            attack=attack,
            reconstruction=proposal,
            tokenizer=subject.tokenizer,
            loaded=subject.loaded,
            seconds=time.perf_counter() - start,
        )
        findings.append(finding)
        if listener is not None:
            listener.finished(finding, number, len(chosen))
    return tuple(findings)


def _bag(ids: list[int], tokenizer: Tokenizer) -> str:
    pieces = (tokenizer.decode(torch.tensor([token])) for token in ids if token not in tokenizer.special_ids)
    return " ".join(sorted(pieces))
