"""What people hold is a file, a folder of shards, or what a library wrote for an adapter. Here it becomes name → tensor; opening
it runs no code. Must not know models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gradleak.core.errors import DataError, UnsafeFileError

TENSORS = "update.safetensors"
_SINGLE = (TENSORS, "adapter_model.safetensors", "model.safetensors")
_PICKLED = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib"})
_NO_TENSORS = frozenset({"training_args.bin", "scheduler.pt", "optimizer.pt", "rng_state.pth", "scaler.pt"})
"""Pickled files that a trainer leaves beside weights; they hold nothing that is read here, and are not opened."""


def read_tensors(
    place: Path, *, wanted: Callable[[str], bool] = lambda name: True, what: str = "update"
) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a folder: of a capture, of an adapter, of a checkpoint in one file or in shards.

    Args:
        wanted: names to read; others are left on the disk.
        what: how messages call it.

    Raises:
        UnsafeFileError: for pickled files.
        DataError: if there is nothing to read, or a file is broken, or two shards hold one name.
    """
    refuse_pickle(place)
    tensors: dict[str, Tensor] = {}
    for file in _files(place, what):
        for name, tensor in _of_file(file, wanted):
            if name in tensors:
                raise DataError(f"{file} holds {name!r}, which another shard holds too. Give one set of shards.")
            tensors[name] = tensor
    return tensors


def refuse_pickle(place: Path) -> None:
    """Raises ``UnsafeFileError`` for a pickled file, and for a folder whose tensors are pickled."""
    files = [place] if place.is_file() else sorted(place.glob("*")) if place.is_dir() else []
    safe = any(file.suffix == ".safetensors" for file in files)
    for file in files:
        if safe and file.name in _NO_TENSORS:
            continue
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


def _files(place: Path, what: str) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(
            f"There is no {what} at {place}: no such file or folder. Give a .safetensors file of parameter name → tensor, "
            "or a folder as gradleak.capture(update, path) writes."
        )
    for name in _SINGLE:
        if (place / name).is_file():
            return [place / name]
    index = sorted(place.glob("*.safetensors.index.json"))
    if index:
        return _of_index(index[0])
    shards = sorted(place.glob("*.safetensors"))
    if shards:
        return shards
    raise DataError(
        f"There is no {what} at {place}: the folder holds no .safetensors file. Give a .safetensors file of parameter name → "
        "tensor, or a folder as gradleak.capture(update, path) writes."
    )


def _of_index(index: Path) -> list[Path]:
    try:
        listed: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(listed.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} is not the index of shards (a JSON object with 'weight_map').") from error
    if any("/" in name or "\\" in name for name in names):
        raise DataError(f"{index} names files outside its own folder, so it is refused.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise DataError(f"{index.parent} lacks the shard {missing[0]} ({len(missing)} of {len(names)} are missing).")
    return [index.parent / name for name in names]


def _of_file(file: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                if wanted(name):
                    yield name, stored.get_tensor(name)
    except SafetensorError as error:
        raise DataError(
            f"{file} is not a safetensors file: {error}. Save the update with safetensors.torch.save_file."
        ) from error
