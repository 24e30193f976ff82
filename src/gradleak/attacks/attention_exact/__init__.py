"""Attention exact: the data of a bare attention layer from its gradient, by linear algebra and a small search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradleak.attacks.attention_exact.refine import AttentionMatching
from gradleak.attacks.attention_exact.solve import recover
from gradleak.core.attack import Attack, Clock, Reconstruction, Status
from gradleak.core.batch import Modality
from gradleak.core.errors import NotApplicableError, SpecError
from gradleak.core.knowledge import View
from gradleak.core.loss import SQUARED
from gradleak.core.update import Update
from gradleak.mechanics.attention.softmax import Heads, HeadsGradient, heads_of, matrix_names, split
from gradleak.mechanics.derivatives.least_squares import LevenbergMarquardt
from gradleak.models.bare import BareAttention

_ROUNDING = 32
"""Units of the update's last place to which a certified update is reproduced."""

_ARRIVED = 1e3
"""Square root of the value at which stage 2 has arrived, in units of the last place: what stage 1 makes of rounding (the
gain was at most 90 on the layers measured, and the condition of the targets comes on top); the polish ends at the floor."""

_POLISH = 30
"""Iterations of the full problem from where stage 2 arrived."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionExact(Attack):
    """The staged exact attack: the mixed values in closed form, then n × n unknowns, then all of them.

    For Y = Σ S_h X V_h O_h and L = ½ ‖Y − T‖² with T known: G_O = Mᵀ(M O − T) gives M = [S_h X V_h] by linear algebra iff
    the width is at least twice the number of tokens; the columns of G_V span the tokens; Levenberg–Marquardt finds X in
    that span; a last descent on the whole gradient takes away what rounding did to the first stages.

    Args:
        restarts: starts of the second stage, the first one at the mixed tokens, the others random.
        iterations: of Levenberg–Marquardt per start.

    Guarantees:
        Certified by recomputing the gradient. Below n = 2d tokens a certificate proves recovery (``docs/theory/recovery.md``).

    Source: the reconstruction notes of this project, with a simpler form of the first stage.
    """

    summary: ClassVar[str] = "Exact recovery from a bare attention layer with squared loss and known targets."
    modalities: ClassVar[frozenset[Modality]] = frozenset({"image"})
    losses: ClassVar[frozenset[str]] = frozenset({SQUARED.name})
    needs: ClassVar[frozenset[str]] = frozenset({"subject", "batch_size", "labels"})

    restarts: int = 64
    iterations: int = 200

    def __post_init__(self) -> None:
        if min(self.restarts, self.iterations) < 1:
            raise SpecError("attention_exact: restarts and iterations must be at least 1.")

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        subject, module = view["subject"], _layer(view)
        names = matrix_names(subject)
        missing = [name for name in names if name not in update]
        if missing:
            raise NotApplicableError(
                f"The update lacks {', '.join(missing)}; all four gradients of the layer are read."
            )
        heads = heads_of(subject, module)
        gradient = split(update, subject, module.heads)
        targets = module.get_buffer("targets")[int(torch.as_tensor(view["labels"])[0])].double()
        epsilon = torch.finfo(update[names[0]].dtype).eps
        solution = recover(
            heads,
            gradient,
            targets,
            rng=rng,
            starts=self.restarts,
            iterations=self.iterations,
            matched=max(1e-20, (_ARRIVED * epsilon) ** 2),
            spent=clock.spent,
        )
        inputs, error = _polished(heads, gradient, targets, solution.inputs)
        exact = error < _ROUNDING * epsilon
        spent = Status.BUDGET_SPENT if clock.spent() else Status.CONVERGED
        return Reconstruction(
            records=((module.center + module.spread * inputs).float().unsqueeze(0),),
            status=Status.EXACT if exact else spent,
            certificate=error,
            message=f"{solution.starts} starts; the gradient is reproduced to {error:.1e}.",
            statistics={"starts": float(solution.starts)},
        )


def _layer(view: View) -> BareAttention:
    subject = view["subject"]
    module = subject.module
    if subject.loss.softmax or not isinstance(module, BareAttention):
        raise NotApplicableError(
            f"The closed form needs bare softmax attention with squared loss and known targets; {subject.name} is trained with "
            f"{subject.loss}, whose error signal behind the attention is unknown."
        )
    if int(view["batch_size"]) != 1:
        raise NotApplicableError(f"The closed form is for one record, this batch has {view['batch_size']}.")
    return module


def _polished(heads: Heads, gradient: HeadsGradient, targets: Tensor, inputs: Tensor) -> tuple[Tensor, float]:
    """X after a descent on the whole gradient, and the relative error to which that is then reproduced."""
    observed = gradient.flat()
    scale = float(observed.norm())
    problem = AttentionMatching(
        heads=heads,
        observed=observed.unsqueeze(0),
        seq=inputs.shape[0],
        out=targets.shape[1],
        targets=targets.unsqueeze(0),
    )
    points, values = LevenbergMarquardt(iterations=_POLISH).run(
        problem, inputs.flatten().unsqueeze(0), lambda _i, value, _x: bool((value < 1e-28 * scale**2).all())
    )
    # Three digits: the others depend on how the linear algebra library meets its memory.
    return points[0].view(inputs.shape), float(f"{float((2 * values[0]).sqrt()) / scale:.3g}")
