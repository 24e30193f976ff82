"""For the layer of the theory the questions of a prediction have exact answers: how many equations, what rank, how firmly,
and whether the data follow at all. Must not know attacks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gradleak.core.errors import NotApplicableError, SpecError
from gradleak.core.rng import derive
from gradleak.mechanics.attention.softmax import Heads, data_jacobian, heads_of
from gradleak.models import Subject
from gradleak.models.bare import BareAttention
from gradleak.theory.identifiability.counting import AttentionShape, Verdict, expected_rank, identify, unknowns

_RANK = 1e-9
_MOST = 4096
"""Unknowns up to which the whole Jacobian is decomposed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BareCase:
    """One question about the layer.

    Attributes:
        targets_known: whether the targets are public; unknowns, equations: real numbers on both sides.
        rank: by the law; seen: of the Jacobian at one draw of normal data, in float64.
        largest, smallest: its singular values, of which there are as many as unknowns.
    """

    targets_known: bool
    unknowns: int
    equations: int
    rank: int
    seen: int
    largest: float
    smallest: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class BarePrediction:
    """What is known of the data of ``bare:attention`` before an attack.

    Attributes:
        staged: whether ``attention_exact`` applies, and why.
    """

    model: str
    records: int
    tokens: int
    width: int
    heads: int
    cases: tuple[BareCase, ...]
    staged: str

    def to_plain(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = asdict(self)
        for case in plain["cases"]:
            verdict = case.pop("verdict")
            case |= {"verdict": verdict["uniqueness"].name, "reason": verdict["reason"]}
        return plain


def predict_bare(subject: Subject, *, records: int, seed: int) -> BarePrediction:
    """The verdicts with public and with private targets.

    Raises:
        NotApplicableError: if the model is another one, or too large for its whole Jacobian.
    """
    module = subject.module
    if not isinstance(module, BareAttention):
        raise NotApplicableError(f"{subject.name} is not the bare attention layer.")
    if records < 1:
        raise SpecError(f"A batch needs at least 1 record, got {records}.")
    _, tokens, width = subject.pixel_shape
    shape = AttentionShape.plain(width, module.heads)
    if unknowns(shape, records=records, tokens=tokens, targets_known=False) > _MOST:
        raise NotApplicableError(
            f"{records} records of {tokens} tokens of width {width} are more than {_MOST} unknowns; the Jacobian is decomposed "
            "as a whole. Ask for fewer."
        )
    rng = derive(seed, "bare layer")
    x, b = (torch.randn(records, tokens, width, generator=rng, dtype=torch.float64) for _ in range(2))
    heads = heads_of(subject, module)
    cases = tuple(_case(shape, heads, x, b, targets_known=known) for known in (True, False))
    return BarePrediction(
        model=subject.name,
        records=records,
        tokens=tokens,
        width=width,
        heads=module.heads,
        cases=cases,
        staged=_staged(records, tokens, width),
    )


def _case(shape: AttentionShape, heads: Heads, x: Tensor, b: Tensor, *, targets_known: bool) -> BareCase:
    records, tokens = x.shape[:2]
    point = heads.layer().at(x, b)
    blocks = data_jacobian(point, heads, with_targets=not targets_known)
    singular = torch.linalg.svdvals(torch.cat(list(blocks), 1) / records)
    count = unknowns(shape, records=records, tokens=tokens, targets_known=targets_known)
    values = torch.zeros(count, dtype=torch.float64)
    values[: len(singular)] = singular[:count]
    return BareCase(
        targets_known=targets_known,
        unknowns=count,
        equations=shape.equations,
        rank=expected_rank(shape, records=records, tokens=tokens, targets_known=targets_known),
        seen=int((values > _RANK * values[0]).sum()),
        largest=float(values[0]),
        smallest=float(values[-1]) if values[-1] > _RANK * values[0] else 0.0,
        verdict=identify(shape, records=records, tokens=tokens, targets_known=targets_known),
    )


def _staged(records: int, tokens: int, width: int) -> str:
    if records > 1:
        return f"attention_exact does not apply: it reads one record, this batch has {records}"
    if width < 2 * tokens:
        return f"attention_exact does not apply: it needs a width of at least {2 * tokens} for {tokens} tokens, this is {width}"
    return f"attention_exact applies with known targets: the width {width} is at least twice the {tokens} tokens"
