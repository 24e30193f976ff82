"""The fifty small changes of an image that augmentation policies are made of. Must not know who makes policies.

Number n is level n mod 5 of change n // 5, in the order of ``CHANGES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Images = Float[Tensor, "batch channels height width"]

LEVELS = 5


def _brightness(x: Images, level: int) -> Images:
    return x * (0.4, 0.7, 1.3, 1.6, 1.9)[level]


def _contrast(x: Images, level: int) -> Images:
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (0.4, 0.7, 1.3, 1.6, 1.9)[level]


def _rotate(x: Images, level: int) -> Images:
    angle = math.radians((-40, -20, 20, 40, 90)[level])
    return _affine(x, ((math.cos(angle), -math.sin(angle), 0.0), (math.sin(angle), math.cos(angle), 0.0)))


def _shear_x(x: Images, level: int) -> Images:
    return _affine(x, ((1.0, (-0.6, -0.3, 0.3, 0.6, 0.9)[level], 0.0), (0.0, 1.0, 0.0)))


def _shear_y(x: Images, level: int) -> Images:
    return _affine(x, ((1.0, 0.0, 0.0), ((-0.6, -0.3, 0.3, 0.6, 0.9)[level], 1.0, 0.0)))


def _translate_x(x: Images, level: int) -> Images:
    return _affine(x, ((1.0, 0.0, 2 * (-0.4, -0.2, 0.2, 0.4, 0.5)[level]), (0.0, 1.0, 0.0)))


def _translate_y(x: Images, level: int) -> Images:
    return _affine(x, ((1.0, 0.0, 0.0), (0.0, 1.0, 2 * (-0.4, -0.2, 0.2, 0.4, 0.5)[level])))


def _solarize(x: Images, level: int) -> Images:
    """Inverts pixels from a threshold on; from 0 on, all."""
    return torch.where(x >= (0.0, 0.2, 0.4, 0.6, 0.8)[level], 1.0 - x, x)


def _posterize(x: Images, level: int) -> Images:
    """Rounds to 2, 3, 4, 6 or 8 levels; the slope is that of the unrounded image, for those who differentiate."""
    steps = (2, 3, 4, 6, 8)[level] - 1
    return x + ((x * steps).round() / steps - x).detach()


def _sharpen(x: Images, level: int) -> Images:
    """Away from the mean of the 3 × 3 neighborhood, or towards it."""
    smooth = functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    return x + (-1.0, -0.5, 0.5, 1.0, 2.0)[level] * (x - smooth)


CHANGES: tuple[Callable[[Images, int], Images], ...] = (
    _brightness,
    _contrast,
    _rotate,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
    _solarize,
    _posterize,
    _sharpen,
)
COUNT = len(CHANGES) * LEVELS


def augment(images: Images, policy: tuple[int, ...]) -> Images:
    """The changes of a policy one after the other, each back in [0, 1]; differentiable in the images."""
    for number in policy:
        images = CHANGES[number // LEVELS](images, number % LEVELS).clamp(0.0, 1.0)
    return images


def _affine(x: Images, matrix: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Images:
    """Bilinear resampling at affinely moved places, in units of half the image; black outside."""
    rows = torch.tensor(matrix, dtype=x.dtype, device=x.device).expand(x.shape[0], 2, 3)
    grid = functional.affine_grid(rows, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)
