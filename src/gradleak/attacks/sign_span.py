"""Sign span: tokens from the signs of a gradient, all that AdamW's first step and sign compression leave of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.core.attack import Attack, Clock, Reconstruction, Status
from gradleak.core.batch import Modality
from gradleak.core.errors import NotApplicableError
from gradleak.core.knowledge import View
from gradleak.core.specs import name_of
from gradleak.core.stage import Stage
from gradleak.core.update import Update
from gradleak.mechanics.probing.first_input import FirstInput, read_first_input


@dataclass(frozen=True, kw_only=True, slots=True)
class SignSpan(Attack):
    """A ranking of the vocabulary by how strongly the signs of the first attention's gradient react to a token.

    With G = Σᵢ dᵢ xᵢᵀ stacked from the query, key and value maps and S = sign(G), a token scores

        score(v) = max over p of  ‖S x(v, p)‖² / ‖x(v, p)‖²,  standardized over the vocabulary at every position p,

    where x(v, p) is the part of token v at position p that the first normalization lets through. Signs are nearly
    sign(dᵢ) sign(xᵢ)ᵀ wherever one summand is the largest, and a sign vector keeps most of its direction. AdamW's decay
    of the weights is known and taken off first. The token embedding is not read.

    Args:
        at_most: tokens to propose; batch size times sequence length if None.

    Guarantees:
        None: it ranks, and always proposes. How many of many tokens are found depends on the model; ``benchmarks/span/adamw.py`` tells.
        Not seen: order, repeats, and the last token of a record under a causal language-model loss.

    Source: own derivation; sign compression: Bernstein et al., arXiv 1802.04434.
    """

    summary: ClassVar[str] = (
        "Tokens ranked by the signs of the first attention's gradient: AdamW deltas, sign compression."
    )
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    needs: ClassVar[frozenset[str]] = frozenset({"subject", "batch_size", "seq_len"})
    uses: ClassVar[frozenset[str]] = frozenset({"trainer", "stages"})

    at_most: int | None = None

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        anatomy = view["subject"].anatomy
        matrix = _shared(update, view)
        sizes = matrix.abs()[matrix != 0]
        if sizes.numel() == 0:
            raise NotApplicableError(
                "The update holds no gradient of the first block's attention projections, or only zeros."
            )
        law = read_first_input(view["subject"], anatomy.first_maps()[0].module, positions=view["seq_len"])
        if law is None:
            raise NotApplicableError(
                "The first attention's input is no normalized sum of a token's and a position's row."
            )
        wanted = min(self.at_most or view["batch_size"] * view["seq_len"], anatomy.vocab_size)
        best, score = rank_tokens(law, matrix.sign())
        stages: tuple[Stage, ...] = tuple(view.get("stages") or ())
        last = stages[len(stages) - 1 :]
        only_signs = bool(sizes.max() == sizes.min())
        return Reconstruction(
            records=(best[:wanted],),
            ordered=False,
            status=Status.CONVERGED,
            message=f"The {wanted} best of {anatomy.vocab_size} tokens, of a ranking; no order.",
            adapted=tuple(name_of(s) for s in stages if s.norm_bound() is not None or (only_signs and s in last)),
            statistics={"best_score": float(score[0]), "last_score": float(score[wanted - 1])},
        )


def rank_tokens(
    law: FirstInput, matrix: Float[Tensor, "outputs features"]
) -> tuple[Int64[Tensor, " vocab"], Float[Tensor, " vocab"]]:
    """Token ids by falling score, and the scores in standard deviations over the vocabulary."""
    reader = law.norm.fold((matrix / matrix.norm()).T)
    width = law.norm.fold(torch.eye(law.table.shape[1], dtype=law.table.dtype))
    table, places = law.scale * law.table, law.positions
    tiny = torch.finfo(table.dtype).tiny

    def form(columns: Tensor) -> Tensor:
        metric = columns @ columns.T
        seen = table @ metric
        own = (places @ metric * places).sum(1)
        return (seen * table).sum(1, keepdim=True) + 2 * seen @ places.T + own

    scores = form(reader) / form(width).clamp_min(tiny)
    scores = (scores - scores.mean(0)) / scores.std(0).clamp_min(tiny)
    score, ids = scores.amax(1).sort(descending=True, stable=True)
    return ids, score


def _shared(update: Update, view: View) -> Float[Tensor, "outputs features"]:
    """The first attention's shared matrices, without what weight decay alone would have done to them."""
    trainer, anatomy = view.get("trainer"), view["subject"].anatomy
    maps = [m for m in anatomy.first_maps() if m.weight in update] if anatomy.blocks else []
    if not maps:
        return torch.zeros(0, anatomy.hidden_size)
    # A stage stands between the decay and what is seen, so that it can no longer be taken off exactly.
    if trainer is None or view.get("stages"):
        return torch.cat([m.as_matrix(update[m.weight].float()) for m in maps])
    idle = {m.weight: trainer.idle(m.weight, view["batch_size"]) for m in maps}
    return torch.cat([m.as_matrix(update[m.weight].float() - idle[m.weight]) for m in maps])
