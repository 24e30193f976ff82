"""Why: an update that was captured elsewhere is a first-class observation. It is stored as safetensors beside a JSON
manifest of what its holder knows, so that opening it can run no code. Must not hold private records unless the holder
knows them (a mask, labels).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gradleak.core.channel import Channel
from gradleak.core.errors import DataError, UnsafeFileError
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.loss import LossName
from gradleak.core.specs import build, spec_of
from gradleak.core.update import Update
from gradleak.harness.request.catalogue import make
from gradleak.harness.request.plan import Call
from gradleak.harness.running.store import write_atomically
from gradleak.mechanics.client.framing import Framing
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject

MANIFEST, TENSORS = "observation.json", "update.safetensors"
_PEFT_PREFIX = "base_model.model."
_PICKLED = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib"})


class Manifest(BaseModel):
    """What ``observation.json`` holds: everything the holder knows, as plain data. None is unknown.

    Attributes:
        framed: whether every record has the special tokens that the model's tokenizer puts around a text.
        stages: the defense in use, empty for none.
        training: the local training, a ``LocalTraining`` as plain data; without it no attack can replay the client.
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
    """What the holder of a captured update knows; nothing for a bare ``.safetensors`` file.

    Raises:
        UnsafeFileError: for a pickled file.
        DataError: if there is no observation at ``path``, or its manifest cannot be read.
    """
    place = Path(path)
    _refuse_pickle(place)
    if place.is_file():
        return Manifest()
    manifest = place / MANIFEST
    if not manifest.is_file():
        raise DataError(
            f"There is no observation at {place}. Give a .safetensors file of parameter name → tensor, or a folder with "
            f"{MANIFEST} and {TENSORS}, as gradleak.capture(update, path) writes."
        )
    try:
        return Manifest.model_validate_json(manifest.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise DataError(
            f"{manifest} is not a manifest of an observation: {error}. Write it with gradleak.capture."
        ) from error


def load_observation(path: str | Path, subject: Subject) -> Observation:
    """Reads a captured update as seen by somebody who holds the model, or its first blocks.

    Raises:
        UnsafeFileError: for a pickled file.
        DataError: if a tensor does not fit the model, or the manifest contradicts it.
    """
    manifest = read_manifest(path)
    place = Path(path)
    skipped = frozenset() if subject.extent is None else frozenset(subject.extent.skipped)
    tensors = _read_tensors(place if place.is_file() else place / TENSORS, skipped=skipped)
    trainer = _deployed(manifest, subject)
    tensors = _own_names(tensors, trainer.subject)
    _check_fits(tensors, trainer.subject)
    if manifest.loss is not None and manifest.loss != subject.loss.name:
        raise DataError(
            f"The update was made with the loss {manifest.loss!r}, the model was loaded with {subject.loss.name!r}. Give --loss {manifest.loss}."
        )
    return Observation(update=Update(tensors), knowledge=Knowledge(facts=_facts(manifest, trainer)))


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


def _listed(tensor: Tensor | None) -> list[Any] | None:
    return None if tensor is None else tensor.tolist()


def _refuse_pickle(place: Path) -> None:
    files = [place] if place.is_file() else sorted(place.glob("*")) if place.is_dir() else []
    for file in files:
        if file.suffix.lower() in _PICKLED or _looks_pickled(file):
            raise UnsafeFileError(
                f"{file} is a pickled file, and opening one can run any code that its author wrote. Save the update with "
                "safetensors instead: gradleak.capture(update, path), or safetensors.torch.save_file."
            )


def _looks_pickled(file: Path) -> bool:
    """A pickle stream starts with the PROTO opcode; torch.save wraps one into a zip archive."""
    # The length that opens a safetensors file can read as either mark; its own reader runs no code.
    if not file.is_file() or file.suffix == ".safetensors":
        return False
    with file.open("rb") as stream:
        head = stream.read(4)
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"})


def _read_tensors(file: Path, *, skipped: frozenset[str]) -> dict[str, Tensor]:
    """The tensors of a file, without those of blocks that were not loaded, which are never read."""
    if not file.is_file():
        raise DataError(f"There is no file {file}. An observation folder needs {TENSORS} beside {MANIFEST}.")
    try:
        with safe_open(file, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys() if name not in skipped}  # noqa: SIM118
    except SafetensorError as error:
        raise DataError(
            f"{file} is not a safetensors file: {error}. Save the update with safetensors.torch.save_file."
        ) from error


def _check_fits(tensors: Mapping[str, Tensor], subject: Subject) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in subject.module.named_parameters()}
    for name, tensor in tensors.items():
        if name not in shapes:
            raise DataError(
                f"The update holds {name!r}, which is no parameter of {subject.name}. Give the --model (and --loss) that it was "
                f"trained with; names must be those of module.named_parameters(), such as {next(iter(shapes))!r}."
            )
        if tuple(tensor.shape) != shapes[name]:
            raise DataError(
                f"The update of {name!r} has shape {tuple(tensor.shape)}, {subject.name} has {shapes[name]}. "
                "Give the --model that it was trained with, of the same size."
            )


def _own_names(tensors: Mapping[str, Tensor], subject: Subject) -> dict[str, Tensor]:
    """The tensors under the subject's parameter names.

    A peft wrapper puts two components before every name, and its state dict leaves the adapter's name out.
    """
    known = [name for name, _ in subject.module.named_parameters()]
    adapters = {name for a in subject.anatomy.adapters for name in (a.down.weight, a.up.weight)}
    own: dict[str, str] = {}
    for name in known:
        path, _, last = name.rpartition(".")
        shorter = f"{path.rpartition('.')[0]}.{last}" if name in adapters else name
        own |= {each: name for form in (name, shorter) for each in (form, f"{_PEFT_PREFIX}{form}")}
    return {own.get(name, name): tensor for name, tensor in tensors.items()}
