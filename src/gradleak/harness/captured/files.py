"""An update that was captured elsewhere is a first-class observation. It is stored as safetensors beside a JSON manifest of what its
holder knows, so that opening it can run no code. Must not hold private records unless the holder knows them (a mask, labels).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from gradleak.core.errors import DataError
from gradleak.core.knowledge import Observation
from gradleak.core.loss import LossName
from gradleak.core.specs import spec_of
from gradleak.core.update import Update
from gradleak.harness.captured.tensors import TENSORS, refuse_pickle
from gradleak.harness.request.plan import Call
from gradleak.harness.running.store import write_atomically

MANIFEST = "observation.json"


class Manifest(BaseModel):
    """What ``observation.json`` holds: everything the holder knows, as plain data. None is unknown.

    Attributes:
        framed: whether every record has the special tokens that the model's tokenizer puts around a text.
        stages: the defense in use, empty for none.
        training: the local training, a ``LocalTraining`` as plain data; without it no attack can replay the client.
        sgd_decay: weight decay of SGD, which ``LocalTraining`` does not hold: learning rate times this times the weights was added.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    kind: Literal["gradleak.observation"] = "gradleak.observation"
    schema_version: Literal[1] = 1
    model: str | None = None
    loss: LossName | None = None
    classes: int | None = None
    batch_size: int | None = None
    seq_len: int | None = None
    framed: bool | None = None
    mask: list[Any] | None = None
    labels: list[Any] | None = None
    stages: list[Call] | None = None
    training: dict[str, str | int | float | bool | None] | None = None
    sgd_decay: float | None = None


def save_observation(observation: Observation, path: str | Path) -> None:
    """Writes an observation as a folder that ``load_observation`` and ``gradleak attack`` read."""
    facts = observation.knowledge.facts
    subject, trainer, stages = (facts.get(name) for name in ("subject", "trainer", "stages"))
    write_capture(
        observation.update,
        path,
        Manifest(
            model=None if subject is None else subject.name,
            loss=None if subject is None else subject.loss.name,
            classes=None if subject is None else subject.classes,
            batch_size=facts.get("batch_size"),
            seq_len=facts.get("seq_len"),
            framed=True if facts.get("framing") is not None else None,
            mask=_listed(facts.get("mask")),
            labels=_listed(facts.get("labels")),
            stages=None if stages is None else [Call.of(spec_of(stage)) for stage in stages],
            training=None if trainer is None else asdict(trainer.training),
        ),
    )


def write_capture(update: Mapping[str, Tensor], path: str | Path, manifest: Manifest) -> None:
    """Writes tensors and manifest; the manifest last, so that a folder with one is complete.

    Raises:
        DataError: if the update is empty or holds NaN or infinite entries.
    """
    folder = Path(path)
    checked = Update(update)
    folder.mkdir(parents=True, exist_ok=True)
    _write_tensors(folder / TENSORS, {name: tensor.cpu().contiguous() for name, tensor in checked.items()})
    write_atomically(folder / MANIFEST, (manifest.model_dump_json(indent=2) + "\n").encode())


def _write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Straight to the disk, without a copy of all tensors in one string of bytes; the old file or the new one remains."""
    temporary = file.with_name(f".{file.name}.tmp")
    save_file(tensors, temporary)
    os.replace(temporary, file)


def read_manifest(path: str | Path) -> Manifest:
    """What the holder of a captured update knows; nothing for tensors without a manifest.

    Raises:
        UnsafeFileError: for a pickled file.
        DataError: if there is no observation at ``path``, or its manifest cannot be read.
    """
    place = Path(path)
    refuse_pickle(place)
    manifest = place / MANIFEST
    if not manifest.is_file():
        if not place.exists():
            raise DataError(
                f"There is no observation at {place}: no such file or folder. Give a .safetensors file of parameter name → "
                f"tensor, or a folder with {MANIFEST} and {TENSORS}, as gradleak.capture(update, path) writes."
            )
        return Manifest()
    try:
        return Manifest.model_validate_json(manifest.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise DataError(
            f"{manifest} is not a manifest of an observation: {error}. Write it with gradleak.capture."
        ) from error


def _listed(tensor: Tensor | None) -> list[Any] | None:
    return None if tensor is None else tensor.tolist()
