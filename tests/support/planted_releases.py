"""Noisy steps with the mistakes that are made in practice, each claiming to be a sum of clipped gradients with fresh Gaussian noise.

A step gets the gradients of a batch with or without the canary and releases n vectors. Toys of 120 entries in three blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Release = Callable[[Matrix, int, np.random.Generator], Matrix]
"""Gradients ``[B P]``, number of releases n, generator → ``[n P]``, as sums."""

ENTRIES, OTHERS, CLIP, NOISE = 120, 8, 1.0, 1.5
BLOCKS = (slice(0, 40), slice(40, 100), slice(100, 120))
RELEASES = 200


def clipped(rows: Matrix, clip: float = CLIP) -> Matrix:
    return rows * np.minimum(1.0, clip / np.linalg.norm(rows, axis=-1, keepdims=True))


def total(rows: Matrix) -> Matrix:
    return clipped(rows).sum(0)


def fresh(n: int, rng: np.random.Generator) -> Matrix:
    return rng.standard_normal((n, ENTRIES))


def noisy(noise: Callable[[int, np.random.Generator], Matrix], signal: Callable[[Matrix], Matrix] = total) -> Release:
    """The signal with noise that is given in units of z·C."""
    return lambda rows, n, rng: signal(rows) + NOISE * CLIP * noise(n, rng)


CORRECT = noisy(fresh)


def _without_block(n: int, rng: np.random.Generator) -> Matrix:
    noise = fresh(n, rng)
    noise[:, BLOCKS[2]] = 0.0
    return noise


def _seeded_every(period: int) -> Callable[[int, np.random.Generator], Matrix]:
    return lambda n, rng: fresh(n, rng)[np.arange(n) % period]


def _one_pair(n: int, rng: np.random.Generator) -> Matrix:
    noise = fresh(n, rng)
    noise[n // 2] = noise[3]
    return noise


def _antithetic(n: int, rng: np.random.Generator) -> Matrix:
    noise = fresh(n, rng)
    noise[1::2] = -noise[: 2 * (n // 2) : 2]
    return noise


def _remembers(share: float) -> Callable[[int, np.random.Generator], Matrix]:
    def noise(n: int, rng: np.random.Generator) -> Matrix:
        steps = fresh(n, rng)
        for i in range(1, n):
            steps[i] = share * steps[i - 1] + (1 - share**2) ** 0.5 * steps[i]
        return steps

    return noise


def _shared(share: float) -> Callable[[int, np.random.Generator], Matrix]:
    return lambda n, rng: (1 - share) ** 0.5 * fresh(n, rng) + share**0.5 * fresh(1, rng)


def _one_draw_for_a_block(n: int, rng: np.random.Generator) -> Matrix:
    noise = fresh(n, rng)
    noise[:, BLOCKS[0]] = noise[:, :1]
    return noise


def _sphere(n: int, rng: np.random.Generator) -> Matrix:
    noise = fresh(n, rng)
    return noise / np.linalg.norm(noise, axis=1, keepdims=True) * ENTRIES**0.5


def _fading(n: int, rng: np.random.Generator) -> Matrix:
    scale = np.linspace(1.2, 0.8, n)
    return fresh(n, rng) * (scale / np.sqrt((scale**2).mean()))[:, None]


def _truncated(n: int, rng: np.random.Generator) -> Matrix:
    noise = fresh(n, rng)
    while (far := np.abs(noise) > 3).any():
        noise[far] = rng.standard_normal(int(far.sum()))
    return noise


def _per_block(rows: Matrix) -> Matrix:
    return np.concatenate([clipped(rows[:, block]) for block in BLOCKS], axis=1).sum(0)


def _per_batch(rows: Matrix) -> Matrix:
    return clipped(rows.sum(0)[None])[0]


def _same_in_both_worlds(rows: Matrix, n: int, rng: np.random.Generator) -> Matrix:
    return total(rows) + NOISE * CLIP * fresh(
        n, np.random.default_rng(int(rng.bit_generator.state["state"]["inc"] % 2**31))
    )


def _actual_divisor(rows: Matrix, n: int, rng: np.random.Generator) -> Matrix:
    """A mean over the actual batch, multiplied by the expected size, that of the batch without the canary."""
    return CORRECT(rows, n, rng) * OTHERS / len(rows)


def _follows_the_data(rows: Matrix, n: int, rng: np.random.Generator) -> Matrix:
    """The noise scale is the largest clipped norm of the batch's half, which the canary raises."""
    longest = float(np.linalg.norm(rows, axis=1).max())
    return total(rows) + NOISE * CLIP * min(1.5, longest / 2.0) * fresh(n, rng)


def _clipped_after(rows: Matrix, n: int, rng: np.random.Generator) -> Matrix:
    return clipped(CORRECT(rows, n, rng), 15.0)


def _on_the_support(rows: Matrix, n: int, rng: np.random.Generator) -> Matrix:
    signal = total(rows)
    return signal + NOISE * CLIP * fresh(n, rng) * (np.abs(signal) > 0.02)


FAULTS: Mapping[str, Release] = MappingProxyType(
    {
        "noise x0.95": noisy(lambda n, rng: 0.95 * fresh(n, rng)),
        "noise x0.9": noisy(lambda n, rng: 0.9 * fresh(n, rng)),
        "noise x0.5": noisy(lambda n, rng: 0.5 * fresh(n, rng)),
        "a block without noise": noisy(_without_block),
        "noise on the support only": _on_the_support,
        "the same noise in every release": noisy(lambda n, rng: np.repeat(fresh(1, rng), n, axis=0)),
        "the same noise with and without the canary": _same_in_both_worlds,
        "a seed that comes again after 50 releases": noisy(_seeded_every(50)),
        "one seed used twice": noisy(_one_pair),
        "noise negated in every second release": noisy(_antithetic),
        "noise that remembers (0.1)": noisy(_remembers(0.1)),
        "a share of the noise is common (5 %)": noisy(_shared(0.05)),
        "uniform noise": noisy(lambda n, rng: rng.uniform(-(3**0.5), 3**0.5, (n, ENTRIES))),
        "Laplace noise": noisy(lambda n, rng: rng.laplace(scale=0.5**0.5, size=(n, ENTRIES))),
        "Student noise, 5 degrees": noisy(lambda n, rng: rng.standard_t(5, (n, ENTRIES)) * 0.6**0.5),
        "Gaussian noise cut off at three": noisy(_truncated),
        "signs": noisy(lambda n, rng: rng.choice([-1.0, 1.0], (n, ENTRIES))),
        "rounded noise": noisy(lambda n, rng: np.round(fresh(n, rng) * 4) / 4),
        "one draw for a block": noisy(_one_draw_for_a_block),
        "noise of fixed length": noisy(_sphere),
        "noise that fades": noisy(_fading),
        "no clip": noisy(fresh, lambda rows: rows.sum(0)),
        "clip per block": noisy(fresh, _per_block),
        "clip per batch": noisy(fresh, _per_batch),
        "clip at 1.5 C": noisy(fresh, lambda rows: clipped(rows, 1.5).sum(0)),
        "the record counts twice": noisy(fresh, lambda rows: total(np.concatenate([rows, rows[OTHERS:]]))),
        "divided by the actual batch size": _actual_divisor,
        "noise scale follows the data": _follows_the_data,
        "clipped after the noise": _clipped_after,
    }
)


def setting(rng: np.random.Generator) -> tuple[Matrix, Matrix, Matrix]:
    """Gradients of the others ``[B P]``, the canary's ``[P]``, long, and the reference that the auditor computes."""
    others = rng.standard_normal((OTHERS, ENTRIES)) * rng.uniform(0.05, 0.2, (OTHERS, 1))
    canary = rng.standard_normal(ENTRIES) * 0.5
    return others, canary, total(others)


def run(release: Release, rng: np.random.Generator, releases: int = RELEASES) -> dict[str, Matrix | float]:
    """Arguments of ``audit_releases``."""
    others, canary, reference = setting(rng)
    return {
        "released_without": release(others, releases, rng),
        "released_with": release(np.concatenate([others, canary[None]]), releases, rng),
        "reference": reference,
        "canary": canary,
        "clip": CLIP,
        "noise_multiplier": NOISE,
    }
