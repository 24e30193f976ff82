"""At which noise do span attacks on this gradient end, and how many tokens do they find at the user's noise? Answered
from the two factors of the gradient, by the detection threshold (``detectability``) and the power of the token test
(``token_power``). Must not know models or run an attack.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.theory.noise import detectability, token_power
from gradleak.theory.noise.token_power import TokenTest


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseForecast:
    """What span attacks see of one gradient. Noise is in units of ``unit`` per entry.

    Attributes:
        name: of the gradient.
        unit: the size that a noise of 1 has on an entry, in units of the gradient.
        share: part of the squared norm of the whole update.
        rank: directions that carry signal.
        span_half, span_all: noise at which half, and at which all of the directions are below the detection threshold.
        token_half, token_few: noise at which the token test is expected to find half, and a twentieth, of the tokens.
        visible: directions above the threshold at the user's noise.
        recall: expected share of tokens found by the token test at the user's noise.
        columns: of the gradient; candidates: in the family of tests.
    """

    name: str
    unit: float
    share: float
    rank: int
    span_half: float
    span_all: float
    token_half: float
    token_few: float
    visible: int
    recall: float
    columns: int
    candidates: int


def forecast(
    name: str,
    inputs: Float[Tensor, "tokens features"],
    errors: Float[Tensor, "tokens columns"],
    *,
    unit: float,
    noise: float,
    extra_std: float,
    update_norm: float,
    candidates: int,
) -> NoiseForecast:
    """Predicts detection for G = inputsᵀ @ errors.

    Args:
        inputs, errors: of the distinct inputs of the layer.
        unit: noise of 1 per entry, in units of the gradient.
        noise: the user's, in units of ``unit``.
        extra_std: further noise per entry (rounding), in units of the gradient.
        candidates: vectors that the attacker tests.
    """
    singular = _singular_values(inputs, errors)
    live = singular[singular > 1e-7 * singular[0]] if float(singular[0]) > 0 else singular[:0]
    rows, columns = inputs.shape[1], errors.shape[1]
    test = TokenTest(columns=columns, candidates=candidates)
    strength = token_power.strengths(inputs, errors)
    std = ((noise * unit) ** 2 + extra_std**2) ** 0.5
    edge = detectability.threshold(unit, rows, columns)
    return NoiseForecast(
        name=name,
        unit=unit,
        share=float(singular.square().sum()) / update_norm**2,
        rank=len(live),
        span_half=float(live.median()) / edge if len(live) else 0.0,
        span_all=float(live[0]) / edge if len(live) else 0.0,
        token_half=token_power.dies_at(test, strength, recall=0.5) / unit,
        token_few=token_power.dies_at(test, strength, recall=0.05) / unit,
        visible=int((live > detectability.threshold(std, rows, columns)).sum()),
        recall=token_power.mean_power(test, strength, std),
        columns=columns,
        candidates=candidates,
    )


def _singular_values(inputs: Tensor, errors: Tensor) -> Tensor:
    """Of inputsᵀ @ errors, from two thin factorizations."""
    left = torch.linalg.qr(inputs.double().T, mode="r").R
    right = torch.linalg.qr(errors.double().T, mode="r").R
    return torch.linalg.svdvals(left @ right.T)
