"""What the numbers of an update say by themselves: their format at any scale, the noise that they carry, zeros, signs, a clipped norm.
Must not know models, names or attacks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gradleak.mechanics.subspace.completion import is_pruned
from gradleak.mechanics.subspace.noise_level import rounding_std
from gradleak.mechanics.subspace.number_format import relative_rounding, significant_bits
from gradleak.mechanics.subspace.own_noise import OwnNoise, own_noise

Format = Literal["float32", "bf16", "fp16", "grid", "signs"]
NoiseKind = Literal["none", "proportional", "additive", "unknown"]

_FORMATS: Mapping[int, Format] = {8: "bf16", 11: "fp16", 24: "float32"}
_ROUNDING: Mapping[Format, float] = {name: relative_rounding(bits) for bits, name in _FORMATS.items()}
"""Standard deviation of one rounding, in units of the entry (uniform error, log-uniform significands)."""
_NEAR = 3.0
"""A measured size within this factor of a format's rounding is taken for it: sums and averages change it by no more in practice."""
_CLIPS = tuple(factor * 10.0**power for power in range(-3, 4) for factor in (1.0, 2.0, 5.0))
_CLIPPED = 1e-4
"""Relative distance of a norm from a round number below which a clip is likely: of norms at random, one in 250 is so near."""
_FEW, _WIDEST, _MATRICES = 16, 2048, 4
"""Matrices outside these widths are not decomposed here, and no more than so many are."""
_ENOUGH, _LOOKED = 4096, 9
"""Entries from which a tensor shows its format behind a factor, and tensors that are asked."""
_MOST = 1 << 20
"""Entries of a tensor that are looked at."""
_SATURATED, _EVEN = 0.02, 0.3
"""AdamW's first step: so large a share of the entries lies so near to the largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """How much noise the numbers carry, by the law of singular values.

    Attributes:
        kind: ``proportional`` to the entries (rounding), ``additive`` (one size, differences of weights included), ``none`` beyond the
            rounding of float32, ``unknown`` where no matrix has room for noise to be seen in.
        size: standard deviation: relative to the entries, or relative to the root mean square of the matrix.
        low, high: 95 % interval of ``size``.
    """

    kind: NoiseKind
    size: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """What the numbers of an update say.

    Attributes:
        format: of the entries but for a common factor; ``summed`` if it was told from their noise: sums or averages of such numbers.
        stored: number formats of the file.
        norm, rms: over all entries.
        zeros: share of exact zeros; ``idle_rows``: share of rows of the widest table that are exactly zero.
        pruned: names of tensors whose small entries were left out.
        adam: whether entries crowd at one size, as after AdamW's first step; ``step``: that size.
        clip: a round norm that this one equals to four digits; None otherwise.
    """

    format: Format
    summed: bool
    stored: tuple[str, ...]
    norm: float
    rms: float
    noise: Noise
    zeros: float
    idle_rows: float
    pruned: tuple[str, ...]
    adam: bool
    step: float | None
    clip: float | None

    def to_plain(self) -> dict[str, Any]:
        return asdict(self) | {"stored": list(self.stored), "pruned": list(self.pruned)}


def read_numbers(tensors: Mapping[str, Tensor]) -> Numbers:
    """Reads the numbers of an update.

    Args:
        tensors: name → finite tensor, at least one.
    """
    matrices = {name: t for name, t in tensors.items() if t.ndim == 2 and min(t.shape) > 1 and bool((t != 0).any())}
    squares, zeros, entries = 0.0, 0, 0
    for tensor in tensors.values():
        squares += float(tensor.double().square().sum())
        zeros += int((tensor == 0).sum())
        entries += tensor.numel()
    noise, law = _noise(matrices.values())
    format, summed = _format(matrices or tensors, law)
    norm = math.sqrt(squares)
    step = _one_size(matrices.values())
    table = max(matrices.values(), key=lambda t: max(t.shape), default=None)
    return Numbers(
        format=format,
        summed=summed,
        stored=tuple(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()})),
        norm=norm,
        rms=norm / math.sqrt(max(1, entries)),
        noise=noise,
        zeros=zeros / max(1, entries),
        idle_rows=0.0 if table is None else 1.0 - float((table != 0).any(dim=1).double().mean()),
        pruned=tuple(name for name, t in matrices.items() if t.numel() <= _MOST and _pruned(t)),
        adam=step is not None,
        step=step,
        clip=next((clip for clip in _CLIPS if norm and abs(norm / clip - 1) < _CLIPPED), None),
    )


def _pruned(tensor: Tensor) -> bool:
    # A table's rows that no token reached are no pruning.
    live = tensor[(tensor != 0).any(dim=1)]
    return is_pruned(live) if len(live) else False


def _noise(matrices: Iterable[Tensor]) -> tuple[Noise, OwnNoise | None]:
    """The noise of the matrix in which the law is told best."""
    fitting = sorted((m for m in matrices if min(m.shape) > _FEW and max(m.shape) <= _WIDEST), key=Tensor.numel)
    best: OwnNoise | None = None
    looked = fitting[-_MATRICES:]
    for matrix in looked:
        law = own_noise([matrix])
        if law is not None and (best is None or law.distance < best.distance):
            best = law
    if best is None:
        return Noise(kind="unknown" if not looked else "none"), None
    features, outputs = best.whitened.columns.shape
    few, many = min(features, outputs), max(features, outputs)
    freedom = best.directions * max(1, many - (few - best.directions))
    size = best.relative if best.relative is not None else best.size
    spread = 1.96 * size / math.sqrt(2.0 * freedom)
    kind: NoiseKind = "additive" if best.relative is None else "proportional"
    return Noise(kind=kind, size=size, low=size - spread, high=size + spread), best


def _format(tensors: Mapping[str, Tensor], law: OwnNoise | None) -> tuple[Format, bool]:
    """The format of most matrices: a model in mixed precision leaves some tensors in float32, and small ones tell none."""
    sizes = [t.flatten()[:_MOST] for t in tensors.values() if bool((t != 0).any())]
    sizes = sorted((t[t != 0] for t in sizes), key=Tensor.numel)
    enough = [t for t in sizes if t.numel() >= _ENOUGH] or sizes
    looked = enough[-_LOOKED:]
    if looked and all(len(t.abs()[:_ENOUGH].unique()) == 1 for t in looked):
        return "signs", False
    if looked and all(rounding_std(t) > 0 for t in looked):
        return "grid", False
    bits = Counter(significant_bits(t) for t in looked)
    most = max(bits, key=lambda b: (bits[b], b), default=24)
    if most < 24:
        return _FORMATS[most], False
    if law is not None and law.relative is not None:
        for name in ("bf16", "fp16"):
            if 1 / _NEAR < law.relative / _ROUNDING[name] < _NEAR:
                return name, True
    return "float32", False


def _one_size(matrices: Iterable[Tensor]) -> float | None:
    """The size at which entries crowd from below, in nearly all matrices alike; None if there is none."""
    peaks: list[float] = []
    looked = [m for m in matrices if m.numel() >= 256]
    for matrix in looked:
        sizes = matrix.flatten()[:_MOST].abs()
        sizes = sizes[sizes > 0]
        if sizes.numel() < 256:
            continue
        largest = float(sizes.quantile(0.99)) if sizes.numel() < 1 << 20 else float(sizes[: 1 << 20].quantile(0.99))
        crowded = float(((sizes - largest).abs() < _SATURATED * largest).double().mean())
        if crowded > _EVEN:
            peaks.append(largest)
    if not peaks or 2 * len(peaks) < len(looked):
        return None
    middle = float(torch.tensor(peaks).median())
    same = sum(abs(peak / middle - 1) < 5 * _SATURATED for peak in peaks)
    return middle if 2 * same > len(peaks) else None
