"""An update in bf16, fp16 or fp8 is the true one plus rounding, and rounding is noise. It sets a floor below which no
direction of a gradient can be seen, whatever the attack, and it replaces tolerances that are set by hand.

Rounding x to p significant bits makes a uniform error within half a unit u(x) = 2^(⌊log₂|x|⌋ + 1 − p) in the last place, so
its mean square is E u²/12. With log₂|x| spread evenly over a binade E (u/x)² = 4·2⁻²ᵖ · ¾ / ln 4, hence

    σ = 2⁻ᵖ · rms(G) / (2·sqrt(ln 4))          (the factor is 0.4247)

Entries of a normal or Laplace law are within half a percent of it at every scale; a uniform law has 0.378.

As noise it is white where a gradient has some sixteen directions or more. A gradient of one direction is a product, its
errors follow it, and the floor below is up to five times too low. Subnormal and saturated entries are outside the law.
Must not know a model.
"""

from __future__ import annotations

import math

from gradleak.core.errors import UnknownNameError
from gradleak.mechanics.subspace.number_format import SIGNIFICANT_BITS, relative_rounding


def rounding_std(dtype: str, rms: float) -> float:
    """Standard deviation per entry of the rounding of a tensor whose root mean square is ``rms``.

    Raises:
        UnknownNameError: for a format that is not listed.
    """
    if dtype not in SIGNIFICANT_BITS:
        raise UnknownNameError("number format", dtype, SIGNIFICANT_BITS)
    return relative_rounding(SIGNIFICANT_BITS[dtype]) * rms


def hidden_below(dtype: str, frobenius: float, rows: int, columns: int) -> float:
    """The singular value below which rounding hides a direction of a ``rows × columns`` gradient.

    The detection threshold σ·(rows·columns)^¼ at the σ of rounding, in the units of ``frobenius``.
    """
    return rounding_std(dtype, frobenius / math.sqrt(rows * columns)) * (rows * columns) ** 0.25
