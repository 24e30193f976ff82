"""What attacking a captured update came to, as a folder that a report is made of: ``captured.json`` without content, one tensor file per
attack that proposes something. The tensors are the recovered private data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from gradleak.core.errors import DataError, UsageError
from gradleak.harness.captured.attack import Attacked, Finding
from gradleak.harness.running.environment import environment_of
from gradleak.harness.running.store import write_atomically
from gradleak.models import Tokenizer

CAPTURED, FINDINGS = "captured.json", "findings.json"
SCHEMA_VERSION = 1
_SPECIAL = "[·]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """What one attack proposes, as text.

    Attributes:
        pieces: per record the text of its tokens; of images their shape.
        confidence: per record and token the claimed probability; empty where none is claimed.
    """

    pieces: tuple[tuple[str, ...], ...]
    confidence: tuple[tuple[float, ...], ...]


def check_new(folder: Path) -> None:
    """Raises ``UsageError`` unless a run may be written there: a new folder, an empty one, or one that holds such a run."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; a run is a folder. Give --out the name of a new folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CAPTURED).is_file():
        raise UsageError(f"{folder} holds other files. Give --out the name of a new or empty folder.")


def write_captured(attacked: Attacked, folder: Path, *, update: str, model: str, command: str) -> None:
    """Writes the folder; ``captured.json`` last, so that a folder with one is complete.

    Args:
        update, model, command: as they were asked for, for the reader of the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.safetensors"):
        stale.unlink()
    for number, finding in enumerate(attacked.findings):
        _write_tensors(folder, number, finding)
    plain = [finding.to_plain() for finding in attacked.findings]
    write_atomically(folder / FINDINGS, _json(plain))
    whole = {
        "schema_version": SCHEMA_VERSION,
        "update": update,
        "model": model,
        "command": command,
        "modality": attacked.subject.modality,
        "loss": attacked.subject.loss.name,
        "inspection": attacked.inspection.to_plain(),
        "findings": plain,
        "environment": environment_of(attacked.subject),
    }
    write_atomically(folder / CAPTURED, _json(whole))


def read_captured(folder: Path) -> dict[str, Any]:
    """What ``write_captured`` wrote. Raises ``DataError`` if there is none, or of another version."""
    try:
        plain = json.loads((folder / CAPTURED).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds no {CAPTURED} that can be read: {error}. Run `gradleak attack` again."
        ) from error
    if not isinstance(plain, dict) or plain.get("schema_version") != SCHEMA_VERSION:
        raise DataError(f"{folder / CAPTURED} is of another version. Run `gradleak attack` again.")
    return plain


def read_proposal(folder: Path, number: int, name: str) -> Proposal | None:
    """The proposal of one attack, or None if it has none. Raises ``DataError`` for a file that cannot be read."""
    file = folder / f"{number}-{name}.safetensors"
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            keys = sorted((k for k in stored.keys() if k.startswith("confidence.")), key=_place)  # noqa: SIM118
            sure = tuple(tuple(stored.get_tensor(key).tolist()) for key in keys)
    except SafetensorError as error:
        raise DataError(f"Cannot read {file}: {error}. Run `gradleak attack` again.") from error
    pieces = sorted((key for key in metadata if key.startswith("pieces.")), key=_place)
    return Proposal(pieces=tuple(tuple(json.loads(metadata[key])) for key in pieces), confidence=sure)


def _place(key: str) -> int:
    return int(key.rpartition(".")[2])


def _write_tensors(folder: Path, number: int, finding: Finding) -> None:
    proposal = finding.reconstruction
    tensors = {f"guess.{i}": record.detach().cpu().contiguous() for i, record in enumerate(proposal.records)}
    tensors |= {f"confidence.{i}": sure.float().cpu().contiguous() for i, sure in enumerate(proposal.confidence)}
    if not tensors:
        return
    metadata = {f"pieces.{i}": json.dumps(_pieces(r, finding.tokenizer)) for i, r in enumerate(proposal.records)}
    write_atomically(folder / f"{number}-{finding.name}.safetensors", save(tensors, metadata))


def _pieces(record: Any, tokenizer: Tokenizer | None) -> Sequence[str]:
    if tokenizer is None or record.is_floating_point():
        return [f"image {tuple(record.shape)}"]
    return [_SPECIAL if int(t) in tokenizer.special_ids else tokenizer.decode(t.reshape(1)) for t in record]


def _json(plain: Mapping[str, Any] | Sequence[Any]) -> bytes:
    return (json.dumps(plain, indent=2, allow_nan=False) + "\n").encode()
