"""A sharded checkpoint keeps its blocks in several files, and the first blocks live in the first few. A view of a
checkpoint folder shows the library only the files that are needed; the rest need not even be on the disk.
Must not know models.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from gradleak.core.errors import ModelError

INDEX = "model.safetensors.index.json"


@contextmanager
def only_needed(folder: Path, skipped: Collection[str]) -> Iterator[Path]:
    """A folder with links to the files of ``folder`` that hold more than the ``skipped`` parameters; gone afterwards.

    A checkpoint in one file is given as it is: safetensors reads single tensors out of it.

    Args:
        skipped: parameter names of the model; a checkpoint may leave out their first component (the head's class).

    Raises:
        ModelError: if the index is unreadable, or a needed file is missing.
    """
    index = folder / INDEX
    if not index.is_file() or not skipped:
        yield folder
        return
    files = _read_index(index)
    left_out = {*skipped, *(name.partition(".")[2] for name in skipped)}
    kept = {key: file for key, file in files.items() if key not in left_out}
    missing = sorted(file for file in set(kept.values()) if not (folder / file).is_file())
    if missing:
        raise ModelError(
            f"The checkpoint in {str(folder)!r} lacks {missing[0]}, which holds parameters that are needed."
        )
    with tempfile.TemporaryDirectory(prefix="gradleak-") as place:
        view = Path(place)
        for entry in folder.iterdir():
            if entry.name != INDEX and (entry.name not in files.values() or entry.name in kept.values()):
                (view / entry.name).symlink_to(entry.resolve())
        (view / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": kept}), encoding="utf-8")
        yield view


def _read_index(index: Path) -> dict[str, str]:
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{index} is not the index of a sharded checkpoint (a JSON object with 'weight_map')."
        ) from error
    if not isinstance(files, dict) or any("/" in str(file) or "\\" in str(file) for file in files.values()):
        raise ModelError(f"{index} names files outside its own folder, so it is refused.")
    return files
