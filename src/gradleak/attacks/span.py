"""Span: tokens whose layer-1 input lies in the column space of the attention gradients, put in order by the next layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gradleak.core.attack import Attack, Clock, Reconstruction
from gradleak.core.batch import Modality
from gradleak.core.errors import SpecError
from gradleak.core.knowledge import View
from gradleak.core.update import Update
from gradleak.span.language.language_model import check_prior
from gradleak.span.reading.evidence import AttackInput
from gradleak.span.strategy import Effort, recover


@dataclass(frozen=True, kw_only=True, slots=True)
class Span(Attack):
    """Exact recovery from the low rank of linear-layer gradients, without labels or lengths; a language prior is optional.

    The gradient of a linear layer is G = Xᵀ D, so with fewer tokens than the width its column space holds the inputs
    x_i and almost surely no other vector of the vocabulary. Tokens are tested at the first attention's input; sequences
    are tested behind it, where the input depends on the other tokens: prefix by prefix in a causal model, as whole
    sentences otherwise. The recovered batch is certified by recomputing the update.

    Args:
        beam: most prefixes of one length that are kept, per record of the batch.
        rounds: passes of the sentence search over all positions before it gives up (bidirectional models).
        prior: what is believed of text beforehand, for decoders under noise that leaves the update undecided: none for nothing,
            ``uniform`` for the same search without preference, ``public`` (counts of the sentences that gradleak ships), a ``.txt`` file
            of public text to count, or a local folder with a Hugging Face causal language model of the same tokens.

    Guarantees:
        EXACT is reported only if the recomputed update equals the released one up to rounding.
        Where fewer records than the batch holds are found, and they cover less than half of the tokens that the rows of the
        embedding's gradient tell exactly, that bag of tokens is returned instead.
        Where the client can be replayed, records that do not give back the update are UNDECIDED and without probabilities, never CONVERGED.
        Copies and prefixes of records, which have no direction of their own, are counted: under a causal language-model loss by the head's
        gradient, which gives the last tokens too, for a classifier by least squares over the gradients of single records. There
        copies with opposite labels cancel where both are equally likely, and nothing tells their number. A head that was not shared,
        or more distinct prefixes than the model is wide, leaves last tokens open.
        With a prior: where the update alone decides, it changes nothing. Else both logarithms are added in nats, without a weight, the status
        stays UNDECIDED unless the certificate is exact, and the statistics hold what update and prior say alone.
        Of AdamW one step on float32 weights is undone, as far as small gradients allow; what drowns is not proposed.

    Source: Petrov et al., arXiv 2405.15586 (DAGER).
    Deviations: the rank cut and the acceptance thresholds are derived from number format, known noise and the
        vocabulary's own null law; the second test reads the attention's output and the feed-forward input of the first
        block, a third one the inputs of the second block, against prefixes that hold a token of another record.
    """

    summary: ClassVar[str] = "Tokens in the column space of the attention gradients, ordered by the next layer; exact."
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    needs: ClassVar[frozenset[str]] = frozenset({"subject"})
    uses: ClassVar[frozenset[str]] = frozenset({"trainer", "stages", "batch_size", "seq_len", "mask", "labels"})

    beam: int = 64
    rounds: int = 4
    prior: str | None = None

    def __post_init__(self) -> None:
        if self.prior is not None:
            wrong = check_prior(self.prior)
            if wrong:
                raise SpecError(f"span: {wrong}")

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        return recover(AttackInput.of(update, view, self.prior), Effort(beam=self.beam, rounds=self.rounds), rng, clock)
