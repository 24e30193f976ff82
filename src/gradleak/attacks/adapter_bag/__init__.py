"""Adapter bag: the tokens of a batch from shared LoRA gradients, from the very first step and at any batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.attacks.adapter_bag.bag import Bag, TokenLayout, find_bag
from gradleak.attacks.adapter_bag.factors import adapter_families
from gradleak.core.attack import Attack, Clock, Reconstruction, Status
from gradleak.core.batch import Modality
from gradleak.core.errors import NotApplicableError
from gradleak.core.knowledge import View
from gradleak.core.update import Update
from gradleak.mechanics.probing.first_input import read_first_input
from gradleak.mechanics.probing.heads import relative_rotations
from gradleak.mechanics.probing.probe import linear_inputs, reads_position
from gradleak.models import Subject


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterBag(Attack):
    """Recovery of the bag of tokens from the gradients of the first block's query and key adapters.

    An adapter of rank r shares r numbers per input and output, and the span test on them ends at r tokens. This attack
    does not test: it weighs every token of the vocabulary by the likelihood of all sums that it would be part of. At
    step 0 those are the query adapter's up-gradient, head by head a sum of keys, and the key adapter's, a sum of
    queries; where B was trained already, the rows of dL/dA are sums of the inputs themselves. Without adapters the
    gradients of the projections themselves are weighed in the same way; there span, where it applies, says more.

    Args:
        confidence: tokens with a smaller probability of being in the batch are left out.

    Guarantees:
        Probabilities are those of a Gaussian model of the unknown coefficients; they rank well and are no certificate.
        Not visible: the order and the number of repeats; the last token of a record under a causal language-model loss.

    Source: own derivation, in ``gradleak.attacks.adapter_bag.factors``; adapters of Hu et al., arXiv 2106.09685.
    """

    summary: ClassVar[str] = "The bag of tokens from LoRA gradients, at step 0 and beyond the adapter's rank."
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    needs: ClassVar[frozenset[str]] = frozenset({"subject", "batch_size", "seq_len"})
    uses: ClassVar[frozenset[str]] = frozenset({"mask"})

    confidence: float = 0.5

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        subject = view["subject"]
        anatomy = subject.anatomy
        turns = None
        if anatomy.adapters and anatomy.position_kind == "rotary":
            turns = relative_rotations(subject, length=int(view["seq_len"]), rng=rng)
        families = adapter_families(update, anatomy, subject.parameters(), turns)
        if not families:
            raise NotApplicableError(
                "The update holds no gradient of the first block's attention projections nor of adapters on them, or only zeros."
            )
        path = anatomy.blocks[0].attention_inputs[0].module
        length = int(view["seq_len"])
        layout = TokenLayout(
            counts=_readable(view, subject),
            positional=reads_position(subject, path, torch.arange(4), positions=length),
            causal=anatomy.kind == "decoder",
        )
        width = length if layout.positional else 1
        law = read_first_input(subject, path, positions=width)
        inputs = _Run(subject=subject, path=path, width=width) if law is None else law
        bag = find_bag(families, inputs, layout, vocab_size=anatomy.vocab_size, rng=rng, clock=clock)
        return _conclude(bag, self.confidence, layout, spent=clock.spent())


def _readable(view: View, subject: Subject) -> Int64[Tensor, " length"]:
    """Records with a token at every position that some loss depends on; all are full where lengths are not known."""
    mask = view.get("mask")
    if mask is None:
        mask = torch.ones(int(view["batch_size"]), int(view["seq_len"]), dtype=torch.bool)
    return subject.loss.visible(mask).sum(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """A layer's input by running the module, where it follows no law."""

    subject: Subject
    path: str
    width: int

    def rows(self, ids: Int64[Tensor, " tokens"]) -> Float[Tensor, "tokens width features"]:
        return linear_inputs(self.subject, (self.path,), ids.unsqueeze(1).expand(-1, self.width))[self.path]

    def project(
        self, ids: Int64[Tensor, " tokens"], directions: Float[Tensor, "features columns"]
    ) -> Float[Tensor, "tokens width columns"]:
        return self.rows(ids) @ directions


def _conclude(bag: Bag, confidence: float, layout: TokenLayout, *, spent: bool) -> Reconstruction:
    sure = bag.tokens[bag.probability >= confidence]
    status = Status.BUDGET_SPENT if spent else Status.CONVERGED if len(sure) else Status.NOTHING_FOUND
    return Reconstruction(
        records=(sure,) if len(sure) else (),
        ordered=False,
        confidence=(bag.probability[bag.probability >= confidence],) if len(sure) else (),
        status=status,
        message=f"{len(sure)} tokens with probability {confidence:g} or more, of at most {layout.tokens} in the batch; no order.",
        statistics={
            "tokens": float(len(sure)),
            "mean_probability": float(bag.probability[: len(sure)].mean()) if len(sure) else 0.0,
            "expected_tokens": bag.expected,
            "rounds": float(bag.rounds),
        },
    )
