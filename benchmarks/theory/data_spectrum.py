"""The spectrum of an update's derivative in its data, as `gradleak predict` reads it, and what noise leaves of it.

python -m benchmarks.theory.data_spectrum
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import run
from benchmarks.common.chart import write_lines
from gradleak.mechanics.client.trainer import LocalTraining
from gradleak.models import load_subject
from gradleak.theory.identifiability.jacobian_spectrum import DataSpectrum
from gradleak.theory.prediction.predict import predict
from gradleak.theory.prediction.stand_in import stand_in_batch
from gradleak.theory.prediction.types import Noise

PLOTS = Path(__file__).parents[2] / "docs" / "theory"


def read(model: str, records: int, length: int, *, noise: float = 0.0, dtype: str = "float32") -> DataSpectrum:
    subject = load_subject(model)
    batch = stand_in_batch(subject, batch_size=records, seq_len=length, seed=0)
    found = predict(
        subject, batch, training=LocalTraining(dtype=dtype), noise=Noise(value=noise), origin="stand-in"
    ).spectrum
    assert isinstance(found, DataSpectrum)
    return found


def models() -> None:
    print("## Three models, 4 × 32, float32 update, no noise\n")
    print(
        "| model | records | unknowns | null | largest | smallest at most | resolved | rank above the floor | floor | products | in | CPU s of `predict` |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for model in ("minilm", "random:llama", "random:gpt2"):
        start = time.process_time()
        s = read(model, 4, 32)
        print(
            f"| {model} | {s.records} | {s.unknowns} | {s.null} | {s.largest:.2g} | {s.smallest:.2g} | {s.resolution.name} | "
            f"{s.rank_low:.0f} to {s.rank_high:.0f} ± {s.rank_error:.0f} | {s.floor:.2g} | {s.steps} | {s.dtype} | "
            f"{time.process_time() - start:.0f} |"
        )


def noise() -> None:
    print("\n## MiniLM 1 × 16 under noise: directions that the noise leaves\n")
    print(
        "| noise multiplier | largest | smallest at most | rank at least | rank at most | of |\n|---|---|---|---|---|---|"
    )
    low, high = [], []
    for value in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0):
        s = read("minilm", 1, 16, noise=value)
        left = s.unknowns - s.null
        print(f"| {value:g} | {s.largest:.3g} | {s.smallest:.2g} | {s.rank_low:.0f} | {s.rank_high:.0f} | {left} |")
        low.append((value, s.rank_low / left))
        high.append((value, s.rank_high / left))
    write_lines(
        PLOTS / "data-spectrum.svg",
        "Directions of the data above the noise, MiniLM 1 × 16",
        {"at least": low, "at most": high},
        x="noise multiplier",
        y="share of directions",
        log=(True, False),
    )


def print_page() -> None:
    print("# Singular values of the update's derivative in the data\n")
    models()
    noise()


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=(0,)):
        print_page()


if __name__ == "__main__":
    main()
