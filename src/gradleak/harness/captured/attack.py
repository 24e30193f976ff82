"""Why: attacks on an update whose truth nobody here holds. There is no judge: what an attack proposes stands with its
status, its objective and its certificate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from gradleak.core.attack import Attack, Clock, Reconstruction
from gradleak.core.errors import UsageError
from gradleak.core.knowledge import Observation
from gradleak.core.rng import derive
from gradleak.core.specs import build, spec_of
from gradleak.harness.captured.files import load_observation, read_manifest
from gradleak.harness.request import catalogue, defaults
from gradleak.harness.request.shares import adapted
from gradleak.harness.running.cell import finite, propose, worst_tensors
from gradleak.harness.running.store import write_atomically
from gradleak.mechanics.client.trainer import LocalTraining
from gradleak.models import Subject, Tokenizer, load_subject


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one attack proposes for a captured update, with how much of the model it had."""

    attack: Attack
    reconstruction: Reconstruction
    tokenizer: Tokenizer | None
    loaded: str

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


def attack_capture(
    path: str | Path,
    model: Any,
    *,
    attacks: str | None = None,
    loss: str | None = None,
    settings: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    seed: int = 0,
    budget_seconds: float | None = None,
    first_blocks: int | None = None,
) -> tuple[Finding, ...]:
    """Reads a captured update and runs attacks on it.

    Args:
        model: what ``load_subject`` takes; loss and number of classes come from the manifest where it tells them.
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
    if manifest.training is not None:
        subject = adapted(subject, build(LocalTraining, manifest.training), seed=seed)
    return attack_observation(
        load_observation(path, subject), subject, attacks=chosen, seed=seed, budget_seconds=budget_seconds
    )


def attack_observation(
    observation: Observation,
    subject: Subject,
    *,
    attacks: tuple[Attack, ...] | None = None,
    seed: int = 0,
    budget_seconds: float | None = None,
) -> tuple[Finding, ...]:
    """Runs attacks, the default ones if None, on one observation."""
    chosen = attacks or catalogue.make_attacks(defaults.ATTACKS[subject.modality])
    share = None if budget_seconds is None else budget_seconds / len(chosen)
    return tuple(
        Finding(
            attack=attack,
            reconstruction=propose(
                attack, observation, subject.modality, rng=derive(seed, "attack", spec_of(attack)), clock=Clock(share)
            ),
            tokenizer=subject.tokenizer,
            loaded=subject.loaded,
        )
        for attack in chosen
    )


def save_findings(findings: tuple[Finding, ...], path: str | Path) -> None:
    """Writes ``findings.json`` (without content) and one safetensors file per attack that proposes something.

    The tensors are the recovered private data: treat the folder as such.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for number, found in enumerate(findings):
        proposal = found.reconstruction
        tensors = {f"guess.{i}": record.detach().cpu().contiguous() for i, record in enumerate(proposal.records)}
        tensors |= {f"confidence.{i}": sure.float().cpu().contiguous() for i, sure in enumerate(proposal.confidence)}
        if tensors:
            write_atomically(folder / f"{number}-{found.name}.safetensors", save(tensors))
    text = json.dumps([found.to_plain() for found in findings], indent=2, allow_nan=False)
    write_atomically(folder / "findings.json", (text + "\n").encode())


def _bag(ids: list[int], tokenizer: Tokenizer) -> str:
    pieces = (tokenizer.decode(torch.tensor([token])) for token in ids if token not in tokenizer.special_ids)
    return " ".join(sorted(pieces))
