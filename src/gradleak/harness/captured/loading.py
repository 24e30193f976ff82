"""From a file to what an attack observes: tensors under the model's names as one change, with what its holder knows. Must not know which
attacks run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradleak.core.channel import Channel
from gradleak.core.errors import DataError, UsageError
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.specs import build
from gradleak.core.update import Update
from gradleak.harness.captured.decay import undo_decay
from gradleak.harness.captured.files import Manifest, read_manifest
from gradleak.harness.captured.inspection import SUBTRACT, Inspection, inspect_tensors, read_given
from gradleak.harness.captured.names import Names, map_names, own_names
from gradleak.harness.captured.tensors import read_tensors
from gradleak.harness.request.catalogue import make
from gradleak.mechanics.client.framing import Framing
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldUpdate:
    """A captured update, ready to be attacked.

    Attributes:
        remarks: what was undone, left out or does not fit, a sentence each.
    """

    observation: Observation
    inspection: Inspection
    remarks: tuple[str, ...]


def load_observation(path: str | Path, subject: Subject) -> Observation:
    """Reads a captured update as seen by somebody who holds the model, or its first blocks.

    Raises:
        UnsafeFileError: for a pickled file.
        DataError: if hardly a tensor fits the model, or the manifest contradicts it.
    """
    manifest = read_manifest(path)
    trainer = _deployed(manifest, subject)
    tensors = _read(Path(path), trainer.subject)
    names = map_names(tensors, trainer.subject)
    _check_fits(tensors, names, trainer.subject)
    _check_loss(manifest, subject)
    own = own_names(tensors, names)
    return Observation(update=Update(own), knowledge=Knowledge(facts=_facts(manifest, trainer)))


def load_held(path: str | Path, subject: Subject, *, reference: str | Path | None = None) -> HeldUpdate:
    """Reads a captured update for an attack: says what it is, takes the reference off whole weights, and undoes weight decay.

    Raises:
        UsageError: for whole weights without a reference, and as ``load_observation`` does.
    """
    manifest = read_manifest(path)
    trainer = _deployed(manifest, subject)
    _check_loss(manifest, subject)
    tensors = {name: t for name, t in _read(Path(path), trainer.subject).items() if t.is_floating_point()}
    _check_fits(tensors, map_names(tensors, trainer.subject), trainer.subject)
    start = None if reference is None else read_given(reference, "reference")
    inspection, own = inspect_tensors(read_given(tensors, "update"), trainer.subject, reference=start, vocabulary=False)
    if inspection.kind in {"weights", "adapter"}:
        raise UsageError(SUBTRACT)
    remarks = list(inspection.remarks)
    training = trainer.training if manifest.training is not None else None
    if inspection.kind == "delta" and training is not None and training.share == "gradient":
        remarks.append("The manifest calls it a gradient, but its numbers are those of a difference of weights.")
    if training is None or training.optimizer == "sgd":
        weights = {name: value.detach() for name, value in trainer.subject.module.named_parameters()}
        own, sentence = undo_decay(own, weights, known=_known_decay(manifest, training))
        remarks += [sentence] if sentence else []
    observation = Observation(update=Update(own), knowledge=Knowledge(facts=_facts(manifest, trainer)))
    return HeldUpdate(
        observation=observation, inspection=replace(inspection, remarks=tuple(remarks)), remarks=tuple(remarks)
    )


def _known_decay(manifest: Manifest, training: LocalTraining | None) -> float | None:
    """What was added per weight: (1 − lr · decay)^steps − 1."""
    if manifest.sgd_decay is None or training is None or training.share != "delta":
        return None
    return (1.0 - training.lr * manifest.sgd_decay) ** training.local_steps(manifest.batch_size or 1) - 1.0


def _read(place: Path, subject: Subject) -> dict[str, Tensor]:
    """The tensors, without those of blocks that were not loaded, which are never read."""
    skipped = frozenset() if subject.extent is None else frozenset(subject.extent.skipped)
    return read_tensors(place, wanted=lambda name: name not in skipped)


def _check_loss(manifest: Manifest, subject: Subject) -> None:
    if manifest.loss is not None and manifest.loss != subject.loss.name:
        raise DataError(
            f"The update was made with the loss {manifest.loss!r}, the model was loaded with {subject.loss.name!r}. Give --loss {manifest.loss}."
        )


def _check_fits(tensors: Mapping[str, Tensor], names: Names, subject: Subject) -> None:
    """Raises ``DataError`` unless most tensors are the model's; another head may hang on it."""
    if names.misfits and 2 * len(names.misfits) > len(names.misfits) + len(names.own):
        name, given, wanted = names.misfits[0]
        raise DataError(
            f"The update of {name!r} has shape {given}, {subject.name} has {wanted}. "
            "Give the --model that it was trained with, of the same size."
        )
    if len(names.own) <= len(names.unknown):
        first = next(name for name, _ in subject.module.named_parameters())
        raise DataError(
            f"The update holds {names.unknown[0]!r}, which is no parameter of {subject.name}, and so do {len(names.unknown)} of "
            f"{len(tensors)} names. Give the --model (and --loss) that it was trained with; names must end as those of "
            f"module.named_parameters() do, such as {first!r}. `gradleak inspect` compares them."
        )


def _deployed(manifest: Manifest, subject: Subject) -> ClientTrainer:
    """The client's training as far as its holder knows it, of the model as the stages change it."""
    training = build(LocalTraining, manifest.training or {})
    stages = tuple(make("defenses", call.spec()) for call in manifest.stages or ())
    return Channel(trainer=ClientTrainer(subject=subject, training=training), stages=stages).deployed()


def _facts(manifest: Manifest, trainer: ClientTrainer) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "subject": trainer.subject,
        "batch_size": manifest.batch_size,
        "seq_len": manifest.seq_len,
        "framing": Framing.of(trainer.subject.tokenizer) if manifest.framed else None,
    }
    if manifest.training is not None:
        facts["trainer"] = trainer
    if manifest.stages is not None:
        stages = tuple(make("defenses", call.spec()) for call in manifest.stages)
        # A channel binds the stages to each other; nothing is trained here.
        facts["stages"] = Channel(trainer=trainer, stages=stages).stages
    if manifest.mask is not None:
        facts["mask"] = torch.tensor(manifest.mask, dtype=torch.bool)
    if manifest.labels is not None:
        facts["labels"] = torch.tensor(manifest.labels, dtype=torch.int64)
    return {name: value for name, value in facts.items() if value is not None}
