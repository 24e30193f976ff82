"""Why: an auditor that never fired proves nothing. Here are mechanisms with the mistakes that are made in practice, each
claiming to be the Gaussian mechanism; the audit must flag every one and leave the correct one alone. Toys of whole
gradients, for tests and benchmarks; nothing else uses them. Must not know models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from gradleak.privacy.auditing.conformance import Conformance, Verdict, conform
from gradleak.privacy.bounds import bayes
from gradleak.privacy.bounds.bayes import Rate
from gradleak.privacy.bounds.candidates import Candidates, Matrix


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What every mechanism here says that it does: whole gradients clipped to C, noise of standard deviation z C.

    Attributes:
        gradients: ``[K P]``, unclipped, one per candidate.
        blocks: name → the entries of one parameter; together they are all P.
        table: the name of the token embedding among them.
    """

    gradients: Matrix
    blocks: Mapping[str, slice]
    table: str
    clip: float
    noise_multiplier: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Species:
    """One mechanism: what it releases without noise, and how much noise it adds, per entry and in units of z C."""

    signal: Callable[[Claim], Matrix]
    noise: Callable[[Claim], Matrix]


def clipped(gradients: Matrix, clip: float) -> Matrix:
    """Rows scaled down to the norm ``clip``; shorter ones are left alone."""
    norms = np.linalg.norm(gradients, axis=-1, keepdims=True)
    return gradients * np.minimum(1.0, clip / np.maximum(norms, np.finfo(np.float64).tiny))


def _whole(claim: Claim) -> Matrix:
    return clipped(claim.gradients, claim.clip)


def _each_layer(claim: Claim) -> Matrix:
    return np.concatenate([clipped(claim.gradients[:, where], claim.clip) for where in claim.blocks.values()], axis=1)


def _unclipped(claim: Claim) -> Matrix:
    return claim.gradients


def _times(factor: float) -> Callable[[Claim], Matrix]:
    return lambda claim: np.full(claim.gradients.shape[1], factor)


def _without_table(claim: Claim) -> Matrix:
    noise = np.ones(claim.gradients.shape[1])
    noise[claim.blocks[claim.table]] = 0.0
    return noise


CORRECT = Species(signal=_whole, noise=_times(1.0))
BUGS: Mapping[str, Species] = MappingProxyType(
    {
        "noise x0.9": Species(signal=_whole, noise=_times(0.9)),
        "noise x0.7": Species(signal=_whole, noise=_times(0.7)),
        "noise x0.5": Species(signal=_whole, noise=_times(0.5)),
        "embedding left un-noised": Species(signal=_whole, noise=_without_table),
        "per-layer clip at C each": Species(signal=_each_layer, noise=_times(1.0)),
        "no clip": Species(signal=_unclipped, noise=_times(1.0)),
        # The auditor averages what it sees; the mean of two releases has the noise of one divided by the root of two.
        "two releases accounted as one": Species(signal=_whole, noise=_times(0.5**0.5)),
        # The auditor knows what another release with the same seed was made of, and subtracts.
        "seed used again": Species(signal=_whole, noise=_times(0.0)),
    }
)


def predict(claim: Claim, rng: np.random.Generator, *, trials: int = 100_000) -> dict[str, tuple[Candidates, Rate]]:
    """The Bayes rate that the claim implies for the whole update (``""``) and for each block of it alone."""
    signals = _whole(claim) / claim.clip
    views = {"": slice(None), **claim.blocks}
    found = {}
    for name, where in views.items():
        candidates = Candidates.uniform(signals[:, where] @ signals[:, where].T)
        found[name] = (candidates, bayes.optimal(candidates, claim.noise_multiplier, rng, trials=trials).success)
    return found


def examine(
    claim: Claim,
    species: Species,
    predicted: Mapping[str, tuple[Candidates, Rate]],
    rng: np.random.Generator,
    *,
    trials: int,
    significance: float = 0.05,
) -> dict[str, Conformance]:
    """The conformance test on the whole update and on every block, each at ``significance`` over their number.

    The attacker runs the mechanism's own code without noise on every candidate and takes the nearest; it does not know what
    the code's mistake is. A block is examined alone because noise that is missing there drowns in the noise elsewhere.
    """
    signals, noise = species.signal(claim), species.noise(claim) * claim.noise_multiplier * claim.clip
    truth = rng.integers(signals.shape[0], size=trials)
    released = signals[truth] + noise * rng.standard_normal((trials, signals.shape[1]), dtype=np.float32)
    found = {}
    for name, (candidates, rate) in predicted.items():
        where = claim.blocks[name] if name else slice(None)
        templates = signals[:, where]
        guesses = (released[:, where] @ templates.T - (templates**2).sum(1) / 2).argmax(1)
        found[name] = conform(
            int((guesses == truth).sum()),
            trials,
            rate,
            kappa=candidates.kappa,
            mu_claimed=1.0 / claim.noise_multiplier,
            significance=significance / len(predicted),
        )
    return found


def flagged(found: Mapping[str, Conformance]) -> bool:
    """True if any view of the update violates the claim."""
    return any(each.verdict is Verdict.VIOLATION for each in found.values())
