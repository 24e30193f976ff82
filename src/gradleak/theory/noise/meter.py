"""How much noise one released update carries, told from the update and the model alone. A client's claim of noise
can be checked without its data, and an attacker can calibrate. Must not know the data, the defense or any attack.

Every honest gradient of softmax attention, and of low-rank adapters, obeys identities (``theory.noise._gauge``) whatever the data and the loss. What is
left of them in a released update is noise, rounding, pruning, or a forgery.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from scipy import stats
from torch import Tensor

from gradleak.core.errors import DataError, NotApplicableError, UsageError
from gradleak.mechanics.client.trainer import LocalTraining
from gradleak.mechanics.subspace.number_format import significant_bits
from gradleak.models import Subject
from gradleak.theory.noise._gauge import Identity, Kind, verified_identities

_ROUNDING_MARGIN = 10.0
"""Clean updates leave up to this many times the rounding that the model's own probe leaves."""

_FALSE_ALARM = 1e-6
"""Chance that white Gaussian noise is called uneven."""

_LEVELS, _ON_GRID = 255, 1e-2
"""A tensor lies on an 8-bit grid (or is a sign) if it is a multiple, to this accuracy, of at most this many steps."""

_ZEROS = 0.01
"""Share of exact zeros in a tensor above which it is called pruned: attention gradients are dense."""

_HALF_SUBNORMAL = 2.0**-14
"""Below this, fp16 loses bits and then all of an entry."""

_ROUNDING_OF_FORMAT = 5 * 0.41
"""A format of p bits rounds by 0.41 · 2^-p of an entry on average; five times that is no longer its rounding."""


class Verdict(Enum):
    """What the identities say of an update. The value is the sentence that reports print."""

    CLEAN = "The identities hold to rounding: no noise, pruning or coarse rounding in the attention tensors."
    PRUNED = "Entries were set to zero: exact zeros in tensors that are dense in every honest gradient."
    QUANTIZED = "The tensors hold a short number format, and the identities are off by about its rounding."
    NOISY = "The identities are off as white noise of one size makes them."
    UNEVEN = (
        "The identities are off, unevenly: noise of several sizes, a scaled or replaced tensor, or a forged update."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one kind of identity says in one block; ``std`` as in ``NoiseReading``."""

    block: int
    kind: Kind
    form: str
    equations: int
    std: float
    relative: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseReading:
    """The noise of one released update, estimated without its data.

    Attributes:
        std: estimated standard deviation per entry, in units of the update.
        low, high: interval of ``std`` at ``confidence``; exact for white Gaussian noise on every attention tensor,
            only indicative for any other perturbation.
        relative: ``std`` in units of the root mean square of the entries it was read from.
        floor: ``relative`` of an update without noise; readings below it are rounding.
        equations: independent numbers behind the estimate.
        parts: per block and kind of identity.
        unevenness: p-value of equal noise in all parts and of normal tails; small means not white.
        zeros: largest share of exact zeros in a tensor that is not all zero, unless its number format made them.
        bits: significant bits of the number format that the tensors need: 24 or more is full precision, 11 fp16,
            8 bf16, 7 a grid of few values (int8, signs).
    """

    verdict: Verdict
    std: float
    low: float
    high: float
    confidence: float
    relative: float
    floor: float
    equations: int
    parts: tuple[Part, ...]
    unevenness: float
    zeros: float
    bits: int

    def p_value(self, claimed_std: float) -> float:
        """Two-sided p-value of the claim that white Gaussian noise of this size was added.

        Raises:
            UsageError: unless ``claimed_std`` is positive.
        """
        if not claimed_std > 0:
            raise UsageError(f"A claim of noise needs a positive standard deviation, got {claimed_std}.")
        level = float(stats.chi2.cdf(self.equations * (self.std / claimed_std) ** 2, self.equations))
        return 2 * min(level, 1 - level)


def measure_noise(
    update: Mapping[str, Tensor],
    subject: Subject,
    *,
    training: LocalTraining | None = None,
    confidence: float = 0.95,
) -> NoiseReading:
    """Estimates the noise on the attention tensors of an update.

    With N equations, z the standardized violations and noise N(0, σ²):  Σ z² / σ² ~ χ²_N, so σ̂² = Σ z² / N, with the
    exact interval of χ².

    Args:
        update: what was released: a gradient, or the delta of one SGD step, times any factor.
        training: how it was made, if known; several steps and AdamW are refused, since their deltas are no gradient.
        confidence: of the interval, in (0, 1).

    Raises:
        NotApplicableError: if the update holds no complete set of tensors of an identity, the model obeys none, or
            the training makes no gradient.
        DataError: if a tensor does not have its parameter's shape.
        UsageError: for a confidence outside (0, 1).

    Guarantees:
        σ̂ is the maximum-likelihood estimate and the interval has its stated coverage if every attention tensor carries
        independent Gaussian noise of one size. Tensors outside attention are not looked at. Which identities a model
        obeys is verified on the model, never looked up by name.

    Source: the identities for one bare layer are well known as conserved quantities of gradient flow; biases, grouped
        queries, rotations, the noise law and the interval are derived here.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"The confidence must lie between 0 and 1, got {confidence}.")
    if training is not None and training.share == "delta" and (not training.single or training.optimizer != "sgd"):
        raise NotApplicableError(
            "The noise meter reads gradients; a delta of several steps or of AdamW breaks the identities by itself."
        )
    _check_shapes(update, subject)
    every, rounding = verified_identities(subject)
    if not every:
        raise NotApplicableError("This model's attention obeys no gauge identity that is known here.")
    identities = [identity for identity in every if identity.names() <= update.keys()]
    if not identities:
        wanted = sorted(min((identity.names() for identity in every), key=len))
        raise NotApplicableError(
            f"The update holds no complete pair of attention tensors; the smallest set that would do is {', '.join(wanted)}."
        )
    identities = [identity for identity in identities if identity.size(update) > 0]
    if not identities:
        raise NotApplicableError("Every attention tensor of the update is zero, which any noise would have changed.")
    weights = {name: value.detach() for name, value in subject.parameters().items()}
    return _read(update, weights, identities, rounding * _ROUNDING_MARGIN, confidence)


def _read(
    update: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    identities: list[Identity],
    floor: float,
    confidence: float,
) -> NoiseReading:
    groups: dict[tuple[int, Kind], list[Identity]] = {}
    for identity in identities:
        groups.setdefault((identity.block, identity.kind), []).append(identity)
    violations = {key: torch.cat([i.standardized(update, weights) for i in group]) for key, group in groups.items()}
    sizes = {key: math.sqrt(sum(i.size(update) ** 2 for i in group) / len(group)) for key, group in groups.items()}
    z = torch.cat(list(violations.values()))
    count = z.numel()
    total = float(z.square().sum())
    std = math.sqrt(total / count)
    size = math.sqrt(sum(value**2 for value in sizes.values()) / len(sizes))
    tail = (1 - confidence) / 2
    relative = std / size
    unevenness = _unevenness(list(violations.values()))
    names = sorted(frozenset().union(*(identity.names() for identity in identities)))
    zeros = max(_zeros(update[name]) for name in names if update[name].ndim > 1 and bool(update[name].any()))
    bits = max(_bits(update[name]) for name in names if update[name].ndim > 1)
    return NoiseReading(
        verdict=_verdict(relative=relative, floor=floor, zeros=zeros, bits=bits, unevenness=unevenness),
        std=std,
        low=math.sqrt(total / float(stats.chi2.ppf(1 - tail, count))),
        high=math.sqrt(total / float(stats.chi2.ppf(tail, count))),
        confidence=confidence,
        relative=relative,
        floor=floor,
        equations=count,
        parts=tuple(_part(key, groups[key], violations[key], sizes[key]) for key in groups),
        unevenness=unevenness,
        zeros=zeros,
        bits=bits,
    )


def _part(key: tuple[int, Kind], group: list[Identity], z: Tensor, size: float) -> Part:
    std = float(z.square().mean().sqrt())
    return Part(
        block=key[0],
        kind=key[1],
        form=group[0].form.name,
        equations=z.numel(),
        std=std,
        relative=std / size,
    )


def _verdict(*, relative: float, floor: float, zeros: float, bits: int, unevenness: float) -> Verdict:
    if relative <= floor:
        return Verdict.CLEAN
    if bits <= _GRID:
        return Verdict.QUANTIZED
    if zeros > _ZEROS:
        return Verdict.PRUNED
    if bits < _SINGLE and relative < _ROUNDING_OF_FORMAT * 2.0**-bits:
        return Verdict.QUANTIZED
    return Verdict.UNEVEN if unevenness < _FALSE_ALARM else Verdict.NOISY


_GRID, _SINGLE = 7, 24


def _bits(tensor: Tensor) -> int:
    """Significant bits of the narrowest format that holds the tensor: 7 for a grid of at most 8 bits with its sign."""
    return _GRID if _on_grid(tensor) else significant_bits(tensor)


def _on_grid(tensor: Tensor) -> bool:
    levels = torch.unique(tensor.double().abs())
    levels = levels[levels > 0]
    if levels.numel() == 0 or levels.numel() > _LEVELS or levels.numel() == tensor.count_nonzero():
        return False
    step = float(torch.cat((levels[:1], levels.diff())).min())
    places = levels / step
    return float(places[-1]) <= _LEVELS and float((places - places.round()).abs().max()) < _ON_GRID


def _zeros(tensor: Tensor) -> float:
    """Share of exact zeros; none if fp16 made them of entries that were too small for it."""
    sizes = tensor.double().abs()
    nonzero = sizes[sizes > 0]
    if nonzero.numel() and float(nonzero.min()) < _HALF_SUBNORMAL and torch.equal(sizes.half().double(), sizes):
        return 0.0
    return 1.0 - nonzero.numel() / sizes.numel()


def _unevenness(parts: list[Tensor]) -> float:
    """The smaller of two p-values, doubled: Bartlett's test of equal variance of the parts, and normal kurtosis."""
    values = [part for part in parts if part.numel() > 1 and bool(part.any())]
    if not values:
        return 1.0
    z = torch.cat(values)
    kurtosis = float((z**4).mean() / z.square().mean() ** 2)
    # Var of the sample kurtosis with known zero mean is 24/N for normal z.
    p_tails = math.erfc(abs(kurtosis - 3) / math.sqrt(2 * 24 / z.numel()))
    return min(1.0, 2 * min(p_tails, _bartlett(values)))


def _bartlett(parts: list[Tensor]) -> float:
    """Bartlett's test for normal samples of known mean zero: every entry is a degree of freedom."""
    if len(parts) < 2:
        return 1.0
    counts = [part.numel() for part in parts]
    logs = [math.log(float(part.square().mean())) for part in parts]
    total = sum(counts)
    pooled = math.log(sum(n * math.exp(v) for n, v in zip(counts, logs, strict=True)) / total)
    statistic = total * pooled - sum(n * v for n, v in zip(counts, logs, strict=True))
    correction = 1 + (sum(1 / n for n in counts) - 1 / total) / (3 * (len(parts) - 1))
    return float(stats.chi2.sf(statistic / correction, len(parts) - 1))


def _check_shapes(update: Mapping[str, Tensor], subject: Subject) -> None:
    shapes = {name: tuple(value.shape) for name, value in subject.parameters().items()}
    for name, tensor in update.items():
        if name not in shapes:
            raise DataError(f"The update holds {name!r}, which is no parameter of {subject.name}.")
        if tuple(tensor.shape) != shapes[name]:
            raise DataError(
                f"The update of {name!r} has shape {tuple(tensor.shape)}, {subject.name} has {shapes[name]}."
            )
