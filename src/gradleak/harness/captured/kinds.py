"""Gradient, delta, whole weights or an adapter's factors: which of them a file holds shows in its numbers beside the model's, or by
themselves. Every answer comes with the evidence. Must not know attacks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradleak.harness.captured.numbers import Numbers
from gradleak.mechanics.subspace.number_format import significant_bits

Kind = Literal["gradient", "delta", "weights", "adapter", "unknown"]

_ALIKE, _SAME_SIZE = 0.9, 2.0
"""Cosine and ratio of norms from which a tensor is taken for the model's own weights: training moves them by less."""
_REPRESENTABLE = 0.999
"""Share of entries that, added to the weights, give numbers of the weights' format: a gradient's do by chance, one in eight at most."""
_WITHIN, _BY_CHANCE, _FEWEST = 2, 0.5, 64
"""Half the entries of a difference end within two places of the weights' last one: three quarters are expected to."""
_DTYPES = {8: torch.bfloat16, 11: torch.float16, 24: torch.float32}
_SAMPLED = 1 << 18
_NORM_LOW, _NORM_HIGH, _NORM_SPREAD = 0.3, 3.0, 0.7
_FLAT, _ENTRIES = 0.3, 512
"""How much the last place rises with the size: by nothing for differences of weights, as much as the size for a gradient."""
_OPTIMIZER = ("exp_avg", "momentum_buffer", "master_params", "fp32_flat_groups")
_FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "ia3_l", "hada_w", "lokr_w")


@dataclass(frozen=True, kw_only=True, slots=True)
class KindFinding:
    """What a file holds.

    Attributes:
        kind: ``adapter`` for the weights of an adapter; its gradient or delta is a gradient or delta.
        sign: 1 for after minus before, −1 for before minus after; None where it does not show.
        evidence: one sentence each.
    """

    kind: Kind
    evidence: tuple[str, ...]
    sign: int | None = None


def find_kind(
    tensors: Mapping[str, Tensor], numbers: Numbers, weights: Mapping[str, Tensor] | None, *, known: int, given: int
) -> KindFinding:
    """Tells the kind.

    Args:
        tensors: under the model's names where there is a model.
        weights: the model's, or those given for reference; None without either.
        known: how many of the ``given`` names fit the model; equal to it without a model.
    """
    state = next((name for name in tensors if any(part in name for part in _OPTIMIZER)), None)
    if state is not None:
        return KindFinding(
            kind="unknown", evidence=(f"{state!r} is the name of an optimizer's state, not of a parameter.",)
        )
    if given and not known:
        return KindFinding(kind="unknown", evidence=("No name of the file fits a parameter of the model.",))
    factors = [name for name in tensors if any(part in name for part in _FACTORS)]
    for find in (_as_adapter if factors else _as_weights, _as_difference, _as_adam, _as_steps):
        finding = find(tensors, numbers, weights)
        if finding is not None:
            return finding
    return KindFinding(
        kind="gradient",
        evidence=(
            "It is neither like weights nor a difference of rounded weights. A gradient and a delta of SGD differ by a factor only.",
        ),
    )


def _as_weights(
    tensors: Mapping[str, Tensor], numbers: Numbers, weights: Mapping[str, Tensor] | None
) -> KindFinding | None:
    if weights is not None:
        shared = [name for name in tensors if name in weights and tensors[name].ndim >= 2]
        alike = [name for name in shared if _is_alike(tensors[name], weights[name])]
        if shared and 2 * len(alike) > len(shared):
            return KindFinding(
                kind="weights",
                evidence=(
                    f"{len(alike)} of {len(shared)} matrices have nearly the direction and the size of the model's own.",
                ),
            )
    norms = [t for name, t in tensors.items() if t.ndim == 1 and _names_a_norm(name)]
    near_one = [t for t in norms if _like_a_norm(t)]
    if norms and 2 * len(near_one) > len(norms):
        return KindFinding(
            kind="weights",
            evidence=(f"{len(near_one)} of {len(norms)} scales of normalizations lie around one, as weights' do.",),
        )
    return None


def _is_alike(tensor: Tensor, weight: Tensor) -> bool:
    if tensor.shape != weight.shape:
        return False
    own, other = tensor.double().flatten(), weight.detach().double().flatten()
    sizes = float(own.norm()), float(other.norm())
    if not min(sizes):
        return False
    return float(own @ other) / (sizes[0] * sizes[1]) > _ALIKE and 1 / _SAME_SIZE < sizes[0] / sizes[1] < _SAME_SIZE


def _names_a_norm(name: str) -> bool:
    parts = name.lower().split(".")
    return len(parts) > 1 and parts[-1] == "weight" and any(mark in parts[-2] for mark in ("norm", "ln_", "ln1", "ln2"))


def _like_a_norm(tensor: Tensor) -> bool:
    mean, spread = float(tensor.double().mean()), float(tensor.double().std()) if tensor.numel() > 1 else 0.0
    return _NORM_LOW < mean < _NORM_HIGH and spread < _NORM_SPREAD * mean


def _as_adapter(
    tensors: Mapping[str, Tensor], numbers: Numbers, weights: Mapping[str, Tensor] | None
) -> KindFinding | None:
    """The first factor of an adapter's weights has the size of its start, uniform in ±1/√in; gradients and deltas have not."""
    downs = [t for name, t in tensors.items() if "lora_A" in name and t.ndim == 2]
    started = [t for t in downs if 0.5 < float(t.double().square().mean().sqrt()) * math.sqrt(3.0 * t.shape[1]) < 2.0]
    alike = 0
    if weights is not None:
        alike = sum(_is_alike(t, weights[n]) for n, t in tensors.items() if "lora_A" in n and n in weights)
    if downs and (2 * len(started) > len(downs) or 2 * alike > len(downs)):
        return KindFinding(
            kind="adapter",
            evidence=(
                f"{max(len(started), alike)} of {len(downs)} first factors have the size of an adapter's weights, not of a change.",
            ),
        )
    return None


def _as_difference(
    tensors: Mapping[str, Tensor], numbers: Numbers, weights: Mapping[str, Tensor] | None
) -> KindFinding | None:
    if weights is None:
        return None
    shared = [n for n, t in tensors.items() if n in weights and t.ndim == 2 and bool((t != 0).any())]
    shared = [n for n in shared if tensors[n].shape == weights[n].shape]
    for sign in (1, -1):
        shares = [_share_representable(weights[n], sign * tensors[n].double()) for n in shared]
        shares = [share for share in shares if share is not None]
        if shares and sorted(shares)[len(shares) // 2] >= _REPRESENTABLE:
            words = "added to" if sign == 1 else "taken from"
            return KindFinding(
                kind="delta",
                sign=sign,
                evidence=(
                    f"{words.capitalize()} the model's weights it gives numbers of their format, in every entry.",
                ),
            )
    return None


def _share_representable(weight: Tensor, change: Tensor) -> float | None:
    """How many entries lead from one weight to another one of the same format; None where the changes are too coarse to tell."""
    w, d = weight.detach().flatten()[:_SAMPLED].double(), change.flatten()[:_SAMPLED]
    live = (d != 0) & (w != 0)
    if int(live.sum()) < _FEWEST:
        return None
    w, d = w[live], d[live]
    bits = significant_bits(w)
    after = w + d
    reached = after.to(_DTYPES[bits]).double() == after
    # Numbers of few bits, such as gradients in a short format, lead to a weight by chance: their last place is far above the weights'.
    fine = _last_place(d) <= w.abs().log2().floor() - (bits - 1) + _WITHIN
    return float(reached.double().mean()) if float(fine.double().mean()) > _BY_CHANCE else None


def _last_place(values: Tensor) -> Tensor:
    """The exponent of the last binary place in use."""
    mantissa, exponent = values.frexp()
    whole = (mantissa.abs() * 2.0**53).long()
    return (whole & -whole).double().log2() + exponent - 53


def _as_adam(
    tensors: Mapping[str, Tensor], numbers: Numbers, weights: Mapping[str, Tensor] | None
) -> KindFinding | None:
    if not numbers.adam or numbers.format == "signs":
        return None
    return KindFinding(
        kind="delta",
        evidence=(f"The entries crowd at {numbers.step:.3g}, as after a first step of Adam at that learning rate.",),
    )


def _as_steps(
    tensors: Mapping[str, Tensor], numbers: Numbers, weights: Mapping[str, Tensor] | None
) -> KindFinding | None:
    """A difference of weights is whole in their last place, whatever its own size; a gradient's last place moves with its size."""
    matrices = sorted((t for t in tensors.values() if t.ndim == 2 and t.dtype == torch.float32), key=Tensor.numel)
    shares = [coarse for t in matrices[-8:] if (coarse := _is_coarse(t)) is not None]
    if shares and 2 * sum(shares) > len(shares):
        return KindFinding(
            kind="delta",
            evidence=("Small and large entries end at one binary place, as differences of float32 weights do.",),
        )
    return None


def _is_coarse(tensor: Tensor) -> bool | None:
    entries = tensor.flatten()[:_SAMPLED]
    entries = entries[entries != 0].double()
    if entries.numel() < _ENTRIES or significant_bits(tensor) != 24:
        return None
    exponents, last = entries.abs().log2().floor(), _last_place(entries)
    low, high = torch.quantile(exponents, torch.tensor([0.25, 0.75], dtype=torch.float64))
    if high - low < 1:
        return None
    small, large = exponents <= low, exponents >= high
    rise = (last[large].mean() - last[small].mean()) / (exponents[large].mean() - exponents[small].mean())
    return bool(rise < _FLAT)
