"""Why: after a search among blurred or full spaces every proposed token has to answer: does the update hold its energy, all
other proposed tokens accounted for? Unlike the search this test has an exact law, so a token is either settled at a stated
rate of false alarms, or the answer is "cannot tell". Must not know how sequences were found.

With Y the gradient in units of its noise (columns m), and x the part of a token's input outside the inputs of all other
proposed contexts and outside what directions above the noise edge remain unexplained,

    T = ‖Yᵀx‖² / ‖x‖²  ~  χ²_m  if the token is not in the batch,   χ'²_m(λ)  if it is,  λ = ‖x‖² ‖δ‖² in units of noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from scipy.special import chdtrc
from torch import Tensor

from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.span.likelihood.gradient_likelihood import GradientLikelihood
from gradleak.span.reading.observed_layer import FALSE_ALARM_RATE

DEPENDENT = 1e-6
"""A squared length below which nothing of a unit vector is its own."""
_ROUNDING = 1e-13
"""Part of the largest squared length that float32 inputs leave where nothing should be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenTest:
    """What is known of every token.

    Attributes:
        known: per sequence, which tokens are settled.
        chance: the probability of so much energy by noise alone (the least over layers, times their number).
        unexplained: directions above the noise edge that no proposed token explains (the most of any layer).
    """

    known: tuple[Bool[Tensor, " length"], ...]
    chance: tuple[Float[Tensor, " length"], ...]
    unexplained: int

    def trimmed(self, sequences: Sequence[Int64[Tensor, " length"]]) -> tuple[Int64[Tensor, " length"], ...]:
        """Sequences up to their last settled token; those without any are left out."""
        ends = [int(known.nonzero().max()) + 1 if bool(known.any()) else 0 for known in self.known]
        return tuple(ids[:end] for ids, end in zip(sequences, ends, strict=True) if end)

    @property
    def undecided(self) -> int:
        """Tokens that are not settled though a later one of their sequence is."""
        ends = [int(known.nonzero().max()) + 1 if bool(known.any()) else 0 for known in self.known]
        return sum(int((~known[:end]).sum()) for known, end in zip(self.known, ends, strict=True))


def energy_test(
    sequences: Sequence[Int64[Tensor, " length"]],
    gradient_likelihoods: Sequence[GradientLikelihood],
    model: Model,
    *,
    tests: int,
) -> TokenTest | None:
    """Tests every token of every sequence behind the first attention.

    Args:
        gradient_likelihoods: layers that are asked; a token is settled if one of them settles it.
        tests: number of tokens that the search looked at: they share the rate of false alarms.

    Returns:
        None where there are as many contexts as dimensions: no direction is left for a token of its own.
    """
    contexts = {tuple(ids[: p + 1].tolist()): None for ids in sequences for p in range(len(ids))}
    numbers = {context: number for number, context in enumerate(contexts)}
    usable = [p for p in gradient_likelihoods if len(contexts) < p.gradient.shape[0] - 1]
    if not usable:
        return None
    inputs: dict[str, list[Tensor]] = {p.path: [torch.empty(0)] * len(contexts) for p in usable}
    for ids in sequences:
        seen = linear_inputs(model.subject, list(inputs), ids.unsqueeze(0), parameters=model.parameters)
        for p in range(len(ids)):
            for path, rows in inputs.items():
                rows[numbers[tuple(ids[: p + 1].tolist())]] = seen[path][0, p]
    found = [_chance(torch.stack(inputs[p.path]).double(), p.gradient) for p in usable]
    chances = torch.stack([chance for chance, _ in found])
    chance = (chances.amin(dim=0) * len(usable)).clamp(max=1.0)
    known = chance < FALSE_ALARM_RATE / max(1, tests)
    rows = [torch.tensor([numbers[tuple(ids[: p + 1].tolist())] for p in range(len(ids))]) for ids in sequences]
    return TokenTest(
        known=tuple(known[r] for r in rows),
        chance=tuple(chance[r] for r in rows),
        unexplained=max(strange for _, strange in found),
    )


def _chance(
    inputs: Float[Tensor, "contexts features"], gradient: Float[Tensor, "features columns"]
) -> tuple[Float[Tensor, " contexts"], int]:
    """Probability that noise alone gives each context as much energy of its own as it has, and unexplained directions."""
    unit = torch.nn.functional.normalize(inputs, dim=1)
    features, columns = gradient.shape
    frame = torch.linalg.qr(unit.T).Q
    left = gradient - frame @ (frame.T @ gradient)
    values, vectors = torch.linalg.eigh(left @ left.T)
    strange = vectors[:, values > (math.sqrt(features) + math.sqrt(columns)) ** 2]
    # Contexts do not answer for energy that none of them explains.
    energy = own_energy(unit - (unit @ strange) @ strange.T, gradient)
    return torch.from_numpy(chdtrc(columns, energy.cpu().numpy())).to(energy), strange.shape[1]


def own_energy(
    unit: Float[Tensor, "contexts features"], gradient: Float[Tensor, "features columns"]
) -> Float[Tensor, " contexts"]:
    """T of each vector, all others projected out; zero where nothing of a vector is its own.

    Args:
        unit: vectors of at most unit length; gradient: in units of its noise.
    """
    values, vectors = torch.linalg.eigh(unit @ unit.T)
    # Not the pseudo-inverse: of vectors that depend on each other it makes directions that are none of theirs.
    inverse = (vectors / values.clamp(min=_ROUNDING * float(values[-1]))) @ vectors.T
    length = inverse.diagonal()
    energy = (inverse @ (unit @ gradient)).square().sum(dim=1) / length.clamp(min=1e-300)
    return torch.where(length < 1.0 / DEPENDENT, energy, 0.0)
