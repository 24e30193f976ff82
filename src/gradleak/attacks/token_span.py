"""Token span: which tokens the first attention's gradients hold, without their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gradleak.core.attack import Attack, Clock, Reconstruction, Status
from gradleak.core.batch import Modality
from gradleak.core.knowledge import View
from gradleak.core.update import Update
from gradleak.span.candidates.window import candidates_of
from gradleak.span.reading.evidence import AttackInput
from gradleak.span.reading.observed_layer import first_layer


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSpan(Attack):
    """The first test of ``span`` by itself: every token at every place against the column space of Xᵀ D.

    A bag of words costs one matrix product with the token table and survives more noise than sentences do. Its recall
    under Gaussian noise is what ``gradleak predict`` forecasts (``theory.first_test``).

    Guarantees:
        Without noise and with room left in the space the bag holds every token that has an error signal there, and a
        token outside the batch with probability 1e-3 for the whole vocabulary; under noise a decoder's test lets a few
        more through, because ``span`` rejects them later.

    Source: Petrov et al., arXiv 2405.15586 (DAGER), for the test; its thresholds are ``span``'s.
    """

    summary: ClassVar[str] = "Tokens in the column space of the first attention's gradients, without order."
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    needs: ClassVar[frozenset[str]] = frozenset({"subject"})
    uses: ClassVar[frozenset[str]] = frozenset({"trainer", "stages", "batch_size", "seq_len"})

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        case = AttackInput.of(update, view)
        first = first_layer(
            case.readable,
            case.model,
            noise_std=case.noise_std,
            summands=case.summands,
            mismatch=case.mismatch,
        )
        candidates = candidates_of(case, first, rng)
        bag = candidates.bag()
        return Reconstruction(
            records=(bag,) if bag.numel() else (),
            ordered=False,
            status=Status.CONVERGED if bag.numel() else Status.NOTHING_FOUND,
            message=f"{bag.numel()} tokens lie in the span of rank {first.space.rank} of {first.space.features}; no order.",
            adapted=case.adapted(),
            statistics={
                "rank_first": float(first.space.rank),
                "noise_over_expected": first.space.noise,
                "distinct_tokens": float(bag.numel()),
                "positions": float(candidates.length()),
            },
        )
