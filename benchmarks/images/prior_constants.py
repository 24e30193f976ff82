"""The constants of the prior of photographs (``gradleak.mechanics.patches.prior``), from the two photographs of scikit-learn.

python -m benchmarks.images.prior_constants
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from benchmarks.common import run
from gradleak.mechanics.patches.prior import COLOR, LENGTH, MEAN, STD


def print_page(asked: argparse.Namespace) -> None:
    print(
        "# Constants of the prior\n\nPrinted by `python -m benchmarks.images.prior_constants`. Two photographs, scaled to squares."
    )
    print(
        "Length: the distance over which the correlation falls by e, in units of the side, from the correlation at a quarter of it.\n"
    )
    print("| size | mean | standard deviation | length | correlation of two channels |\n|---|---|---|---|---|")
    for size in (32, 64, 96):
        cut = [ImageOps.fit(Image.fromarray(each), (size, size)) for each in load_sample_images().images]
        pixels = np.stack([np.asarray(each, dtype=float) / 255 for each in cut])
        off = pixels - pixels.mean()
        lag = size // 4
        across, down = off[:, :, :-lag] * off[:, :, lag:], off[:, :-lag] * off[:, lag:]
        correlation = (across.mean() + down.mean()) / 2 / (off**2).mean()
        length = -lag / math.log(correlation) / size
        pairs = itertools.combinations(range(3), 2)
        color = np.mean([np.corrcoef(off[..., a].ravel(), off[..., b].ravel())[0, 1] for a, b in pairs])
        print(f"| {size} | {pixels.mean():.3f} | {pixels.std():.3f} | {length:.3f} | {color:.3f} |")
    print(f"| used | {MEAN} | {STD} | {LENGTH} | {COLOR} |")


def main(argv: Sequence[str] | None = None) -> None:
    asked = run.parse(run.parser(__doc__), argv)
    with run.record(__file__, asked, seeds=None):
        print_page(asked)


if __name__ == "__main__":
    main()
