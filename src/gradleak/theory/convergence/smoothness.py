"""A convergence bound needs a smoothness constant, and the published ones for attention are exponential in the size of
the data: right, and of no use. These are polynomial, for the loss ½‖S X V − B‖² as a function of W in S = softmax(s X W Xᵀ).

A softmax average γ = ⟨f, v⟩ whose logits move along u has, with r the range (largest minus smallest entry),

    |γ'| ≤ r_v r_u / 4        |γ''| ≤ r_v r_u² / 4        |γ'''| ≤ 7 r_v r_u³ / 16

(they are joint cumulants of u and v under f). Along a unit direction of W the logits of row j have a range of at most
a_j = s·‖x_j‖·diam, diam the largest distance of two tokens. With ρ_i the range of column i of H = X V and c the largest
|residual| that any attention can leave,

    L_W = Σ_ji (ρ_i²/16 + c_ji ρ_i/4) a_j²          M_W = Σ_ji (3ρ_i²/16 + 7 c_ji ρ_i/16) a_j³

bound the Hessian and its Lipschitz constant at every W. Must not know models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradleak.core.errors import SpecError


@dataclass(frozen=True, kw_only=True, slots=True)
class Smoothness:
    """Constants of the squared loss of one attention layer as a function of its score weights.

    Attributes:
        gradient: L_W, the largest the Hessian's spectral norm can be.
        hessian: M_W, its Lipschitz constant.
        published_log10: log₁₀ of the exponential constant for the Hessian, n^1.5 · n d · exp(30 R²): published, vacuous here.
    """

    gradient: float
    hessian: float
    published_log10: float


def derivative_bounds(range_values: float, range_logits: float) -> tuple[float, float, float]:
    """Bounds on the first three derivatives of a softmax average."""
    return (
        range_values * range_logits / 4,
        range_values * range_logits**2 / 4,
        7 * range_values * range_logits**3 / 16,
    )


def smoothness(
    inputs: Float[Tensor, "seq model"],
    values: Float[Tensor, "model out"],
    targets: Float[Tensor, "seq out"],
    *,
    scale: float,
) -> Smoothness:
    """The constants for one sequence.

    Args:
        inputs: X; values: V; targets: B.
        scale: s, positive.

    Raises:
        SpecError: if shapes do not fit or the scale is not positive.

    Source: the exponential form is that of arXiv 2309.07418 (bounds R on inputs and weights); the polynomial ones are
        derived here.
    """
    fits = inputs.shape[1] == values.shape[0] and targets.shape == (inputs.shape[0], values.shape[1])
    if not fits or not scale > 0:
        raise SpecError(
            f"Smoothness needs X [n d], V [d m], B [n m] and scale > 0, got {tuple(inputs.shape)}, {tuple(values.shape)}, "
            f"{tuple(targets.shape)}, {scale}."
        )
    mixed = (inputs @ values).double()
    high, low = mixed.max(0).values, mixed.min(0).values
    spread = high - low
    residual = torch.maximum((high - targets).abs(), (low - targets).abs()).double()
    reach = scale * inputs.double().norm(dim=1) * float(torch.cdist(inputs.double(), inputs.double()).max())
    slope, curve, turn = spread / 4, spread / 4, 7 * spread / 16
    gradient = (slope.square() + residual * curve) * reach.unsqueeze(1) ** 2
    hessian = (3 * slope * curve + residual * turn) * reach.unsqueeze(1) ** 3
    n, d = inputs.shape
    size = max(float(inputs.double().norm(dim=1).max()), float(values.double().norm()))
    return Smoothness(
        gradient=float(gradient.sum()),
        hessian=float(hessian.sum()),
        published_log10=(30 * size**2) / math.log(10) + 1.5 * math.log10(n) + math.log10(n * d),
    )
