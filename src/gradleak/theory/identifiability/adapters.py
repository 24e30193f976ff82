"""Low-rank adapters share less than the layer they adapt, and how much less is a matter of rank. With W + B A, A of
rank r, and G = Dᵀ X the gradient of W,

    G_A = Bᵀ G    row space inside the inputs' span, at most r dimensions
    G_B = G Aᵀ    the inputs seen through A: at most r numbers of each

so m adapted maps that read one input hold its tokens iff the inputs span at most m·r dimensions. G_A is zero as long as B is
(the usual start); then G_B leaves conditions on the inputs iff they span fewer than r dimensions. Must not know models.
"""

from __future__ import annotations

from gradleak.core.errors import SpecError
from gradleak.theory.identifiability.counting import Uniqueness, Verdict


def adapter_verdict(*, rank: int, maps: int, inputs: int, fresh: bool) -> Verdict:
    """Whether the adapters of one layer hold the tokens of a batch.

    Args:
        rank: r of each adapter.
        maps: how many adapted maps read the same input.
        inputs: dimensions that the batch's inputs of that layer span.
        fresh: whether B is still zero, as before the first step.
    """
    if rank < 1 or maps < 1:
        raise SpecError(f"An adapter needs a rank and a map of at least 1, got rank {rank} and {maps} maps.")
    if fresh and inputs < rank:
        return Verdict(
            uniqueness=Uniqueness.UNIQUE,
            reason=f"B is zero before the first step, but its gradient spans {inputs} of {rank} numbers of every input: "
            f"{rank - inputs} linear conditions per adapter that shows them all.",
        )
    if fresh:
        return Verdict(
            uniqueness=Uniqueness.UNDERDETERMINED,
            reason=f"B is zero before the first step, so the gradient of A is; that of B shows {rank} numbers of every input.",
        )
    if inputs <= maps * rank:
        return Verdict(
            uniqueness=Uniqueness.UNIQUE,
            reason=f"the inputs span {inputs} dimensions, and {maps} adapters of rank {rank} hold up to {maps * rank}.",
        )
    return Verdict(
        uniqueness=Uniqueness.UNDERDETERMINED,
        reason=f"the inputs span {inputs} dimensions, more than the {maps * rank} of {maps} adapters of rank {rank}: a mixture.",
    )
