"""The photographs of the image benchmarks: those that scikit-image carries, in two halves. Settings were chosen on the first half
alone; the second was looked at once they stood. The two photographs of scikit-learn gave the prior its constants and are in neither.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from skimage import data
from torch import Tensor

FIRST = ("astronaut", "coffee", "chelsea", "rocket", "camera", "brick", "clock")
SECOND = ("retina", "immunohistochemistry", "hubble_deep_field", "stereo_motorcycle", "coins", "moon", "grass")
HALVES = {"first": FIRST, "second": SECOND}


def photograph(name: str) -> Image.Image:
    """A photograph of scikit-image in color, as it is stored."""
    pixels = getattr(data, name)()
    return Image.fromarray(np.asarray(pixels[0] if isinstance(pixels, tuple) else pixels)).convert("RGB")


def crop(name: str, size: int, *, seed: int | None = None) -> Float[Tensor, "3 size size"]:
    """The central square of a photograph, or a random one of at least half its side, scaled to ``size`` and in [0, 1]."""
    image = photograph(name)
    side = min(image.size)
    left, top = ((extent - side) // 2 for extent in image.size)
    if seed is not None:
        rng = np.random.default_rng([seed, *name.encode()])
        side = int(rng.integers(side // 2, side + 1))
        left, top = (int(rng.integers(0, extent - side + 1)) for extent in image.size)
    cut = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255.0).permute(2, 0, 1).contiguous()


def batch(half: str, size: int, count: int, *, seed: int) -> Float[Tensor, "count 3 size size"]:
    """``count`` crops of one half, of different photographs as far as there are as many."""
    names = HALVES[half]
    rounds = -(-count // len(names))
    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(names)) for _ in range(rounds)])[:count]
    crops = [crop(names[place], size, seed=seed + 1000 * (number // len(names))) for number, place in enumerate(order)]
    return torch.stack(crops)


def psnr(truth: Tensor, guess: Tensor) -> float:
    """Of pixels in [0, 1], the guess clamped; at most 120 dB."""
    mse = float((truth.double() - guess.double().clamp(0, 1)).square().mean())
    return 120.0 if mse < 1e-12 else -10 * math.log10(mse)
