"""Sums of ranks, with their exact law: how far a few ranks must be from chance before they count as none."""

from __future__ import annotations

from collections.abc import Mapping

Law = Mapping[int, float]
"""Probability of every value."""


def uniform(candidates: int) -> Law:
    """The rank of the true one among so many, guessed."""
    return {rank: 1 / candidates for rank in range(1, candidates + 1)}


def sum_of(law: Law, draws: int) -> Law:
    """The law of the sum of independent draws."""
    total: dict[int, float] = {0: 1.0}
    for _ in range(draws):
        after: dict[int, float] = {}
        for value, p in total.items():
            for rank, q in law.items():
                after[value + rank] = after.get(value + rank, 0.0) + p * q
        total = after
    return total


def at_most(law: Law, bound: int) -> float:
    """Probability of a value up to ``bound``."""
    return sum(p for value, p in law.items() if value <= bound)


def largest_sum(candidates: int, draws: int, *, chance: float) -> int:
    """The largest sum of ranks that guessing reaches, or undercuts, with probability ``chance`` at most."""
    law, bound = sum_of(uniform(candidates), draws), draws
    while at_most(law, bound + 1) <= chance:
        bound += 1
    return bound
