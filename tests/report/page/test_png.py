"""A picture is read back by another library."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from gradleak.report.page import png

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("channels", [1, 3])
def test_png_is_read_back_by_pillow(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 9, channels), dtype=np.uint8)
    image = np.asarray(Image.open(io.BytesIO(png.encode(pixels)))).reshape(pixels.shape)
    assert (image == pixels).all()
