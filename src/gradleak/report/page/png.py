"""Images must travel inside the page, and a PNG is three chunks around a zlib stream; no imaging package needed."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """``data:image/png;base64,…`` of ``[height width channels]`` with one (gray) or three (RGB) channels."""
    return "data:image/png;base64," + base64.b64encode(encode(pixels)).decode("ascii")


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """PNG, 8 bits per channel, no filter, no metadata: the same pixels give the same bytes."""
    height, width, channels = pixels.shape
    color_type = {1: 0, 3: 2}[channels]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
