"""Images arrive in every size; a vision model takes one. Decodes, crops and resizes, nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.errors import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


def read_images(
    folder: Path, *, size: int, channels: int
) -> tuple[Float[Tensor, "images channels size size"], tuple[str, ...] | None]:
    """Reads every png and jpeg of a folder, or of its sub-folders, in the order of their names.

    Returns:
        Pixels in [0, 1], cropped to a square around the center and resized; and the sub-folder of each, or None.

    Raises:
        DataError: if there is no image, one cannot be decoded, images lie both in and beside sub-folders, or pillow
            is not installed.
    """
    loose = _images_in(folder)
    nested = [file for entry in sorted(folder.iterdir()) if entry.is_dir() for file in _images_in(entry)]
    if loose and nested:
        raise DataError(
            f"{folder} holds images both directly and in sub-folders. Put all into sub-folders named by their label, or none."
        )
    files = loose or nested
    if not files:
        raise DataError(
            f"{folder} holds no image. Give a folder of .png, .jpg or .jpeg files, in sub-folders if labeled."
        )
    pixels = torch.stack([_read(file, size, channels) for file in files])
    return pixels, tuple(file.parent.name for file in files) if nested else None


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES)


def _read(file: Path, size: int, channels: int) -> Float[Tensor, "channels size size"]:
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        raise DataError("Images need pillow, which is not installed: pip install 'gradleak[images]'.") from error
    if channels not in (1, 3):
        raise DataError(
            f"The model reads images of {channels} channels; only 1 (gray) and 3 (color) can be read from files."
        )
    try:
        with Image.open(file) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB" if channels == 3 else "L")
            square = ImageOps.fit(upright, (size, size), method=Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read as an image: {error}. Mend or remove it.") from error
    values = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255.0)
    return values.unsqueeze(0) if channels == 1 else values.permute(2, 0, 1).contiguous()
