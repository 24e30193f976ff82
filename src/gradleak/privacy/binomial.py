"""Why: what a number of successes proves about the rate behind it. Must not know what was counted."""

from __future__ import annotations

from scipy.special import betaincinv  # pyright: ignore[reportMissingTypeStubs]

from gradleak.core.errors import UsageError


def lower(successes: int, trials: int, significance: float) -> float:
    """The rate that is undercut with probability at most ``significance`` (one-sided, Clopper and Pearson).

        p_lo = sup {p : P(Bin(n, p) ≥ k) ≤ α} = B⁻¹(α; k, n - k + 1)

    Args:
        successes: k, from 0 to ``trials``.
        trials: n, at least 1.
        significance: α, in (0, 1).

    Raises:
        UsageError: for an argument out of range.

    Guarantees:
        Over independent trials of rate p, the result exceeds p with probability at most α, whatever p.
    """
    _check(successes, trials, significance)
    return 0.0 if successes == 0 else float(betaincinv(successes, trials - successes + 1, significance))


def upper(successes: int, trials: int, significance: float) -> float:
    """The rate that is exceeded with probability at most ``significance``; arguments and errors as ``lower``."""
    _check(successes, trials, significance)
    return 1.0 if successes == trials else float(betaincinv(successes + 1, trials - successes, 1.0 - significance))


def interval(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Both ends, each with half of 1 - ``confidence``."""
    tail = (1.0 - confidence) / 2.0
    return lower(successes, trials, tail), upper(successes, trials, tail)


def _check(successes: int, trials: int, significance: float) -> None:
    if trials < 1 or not 0 <= successes <= trials:
        raise UsageError(f"{successes} successes of {trials} trials cannot be. Give at least one trial and count hits.")
    if not 0.0 < significance < 1.0:
        raise UsageError(f"significance={significance} is out of range. It must lie between 0 and 1, such as 0.05.")
