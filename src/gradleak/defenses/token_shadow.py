"""Text has no noise to hide in, so a token is replaced by another one that the model takes for nearly the same. The
rule is public, so a candidate record brings its own list of possible shadows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.core.batch import IGNORED, TrainingData
from gradleak.core.errors import ModelError
from gradleak.core.stage import Client, DataStage
from gradleak.defenses._tensors import require
from gradleak.models import Subject

_COPIES = 16
"""Shadow sequences over which the attacker averages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenShadow(DataStage):
    """Trains on shadows: every token replaced by a different one that is close to it in the embedding space.

        S(t) = the tokens with ranks skip + 1, ..., skip + pool by ‖e(s) − e(t)‖, s ≠ t and not special
        draw ``draws`` sequences with every token uniform on its S(t), and train on the one with the least
        ‖r(shadow) − r(record)‖, r the input of the head

    Special tokens and padding stay. Where tokens are also targets (language models), the targets are the shadows.

    Args:
        pool: size of S, at least 1.
        skip: nearest tokens that are passed over because they often mean the same, at least 0.
        draws: sequences to select from, at least 1.

    Raises:
        SpecError: if an argument is out of range; when run, ``ModelError`` for a model of images, one whose head was not
            found, or a vocabulary with fewer than skip + pool + 1 ordinary tokens.

    Guarantees:
        No ordinary token of a record is trained on at its place. Fresh draws at each call, from ``rng`` alone.
        The surrogate trains on many shadows of a candidate at once, drawn by the same rule: the mean gradient under the
        law, which is not exact at the truth. No differential privacy.

    Source: re-derived after GHOST (arXiv 2602.15897), of which the notes had the abstract only.
    Deviations: unknown; search by embedding distance and random draws, selection by the head's input, are our reading of
        "multi-criteria search" and "matching internal outputs". No semantic model checks that meanings differ.
    """

    summary: ClassVar[str] = "Trains on other tokens that are close in the embedding space (re-derived after GHOST)."

    pool: int = 8
    skip: int = 2
    draws: int = 16

    def __post_init__(self) -> None:
        for key, value, least in (("pool", self.pool, 1), ("skip", self.skip, 0), ("draws", self.draws, 1)):
            require(value >= least, "token_shadow", key, value, f"at least {least}")

    def apply(self, client: Client, rng: torch.Generator) -> TrainingData:
        subject: Subject = client.trainer.subject
        data = client.data
        if subject.modality != "text" or data.inputs.is_floating_point() or subject.tokenizer is None:
            raise ModelError(f"token_shadow replaces token ids; {subject.name} is not trained on any.")
        original = _originals(subject, data)
        fixed = ~data.mask | torch.isin(original, torch.tensor(sorted(subject.tokenizer.special_ids)).to(original))
        choices = shadows(subject, original, pool=self.pool, skip=self.skip)
        wanted, best = _representations(subject, data), data
        least = torch.full((data.size,), float("inf"), dtype=torch.float64)
        for _ in range(self.draws):
            picks = torch.randint(self.pool, (*original.shape, 1), generator=rng, device=rng.device).to(original)
            drawn = torch.where(fixed, original, choices.gather(-1, picks).squeeze(-1))
            trial = _with_tokens(subject, data, original, drawn)
            distance = (_representations(subject, trial) - wanted).norm(dim=1)
            better = distance < least
            least, best = torch.where(better, distance, least), _choose(better, trial, best)
        return best

    def surrogate(self, client: Client) -> TrainingData:
        data = client.data
        # One shadow per token leaves nothing to average; one copy then repeats the release to the last bit.
        count = 1 if self.pool == 1 else _COPIES
        copies = TrainingData(
            inputs=data.inputs.repeat(count, 1),
            targets=data.targets.repeat(count, *[1] * (data.targets.ndim - 1)),
            mask=data.mask.repeat(count, 1),
        )
        return self.apply(replace(client, data=copies), torch.Generator().manual_seed(0))

    def surrogate_is_identity(self) -> bool:
        return False


def shadows(
    subject: Subject, ids: Int64[Tensor, "batch seq"], *, pool: int, skip: int
) -> Int64[Tensor, "batch seq pool"]:
    """S(t) for every token.

    Raises:
        ModelError: if the vocabulary is too small.
    """
    assert subject.tokenizer is not None
    size = subject.tokenizer.vocab_size
    special = [token for token in subject.tokenizer.special_ids if token < size]
    if size - len(special) < skip + pool + 1:
        raise ModelError(
            f"token_shadow: {subject.name} has {size - len(special)} ordinary tokens, fewer than skip + pool + 1 = "
            f"{skip + pool + 1}. Lower pool."
        )
    with torch.no_grad():
        table = subject.embed(torch.arange(size, device=ids.device).unsqueeze(0))[0].double()
    kinds, place = ids.unique(return_inverse=True)
    distances = torch.cdist(table[kinds], table)
    distances[:, special] = float("inf")
    distances[torch.arange(len(kinds)), kinds] = float("inf")
    nearest = distances.topk(skip + pool, dim=1, largest=False).indices[:, skip:]
    return nearest[place]


def _originals(subject: Subject, data: TrainingData) -> Tensor:
    """The tokens of the records; where a masked-LM batch hides one, its target."""
    if subject.loss.labels_records:
        return data.inputs
    return torch.where(data.targets.sum(-1) > 0, data.targets.argmax(-1), data.inputs)


def _with_tokens(subject: Subject, data: TrainingData, original: Tensor, drawn: Tensor) -> TrainingData:
    inputs = torch.where(data.inputs == original, drawn, data.inputs)
    if subject.loss.labels_records:
        return replace(data, inputs=inputs)
    targets = subject.loss.targets(drawn.masked_fill(data.targets.sum(-1) == 0, IGNORED), subject.classes)
    return replace(data, inputs=inputs, targets=targets.to(data.targets))


def _choose(first: Tensor, preferred: TrainingData, other: TrainingData) -> TrainingData:
    """Record by record ``preferred`` where ``first``, else ``other``."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(first.view(-1, *[1] * (a.ndim - 1)), a, b)

    return replace(other, inputs=pick(preferred.inputs, other.inputs), targets=pick(preferred.targets, other.targets))


def _representations(subject: Subject, data: TrainingData) -> Float[Tensor, "batch units"]:
    """What the head reads, one row per record; the places of padding count as zero."""
    head = subject.anatomy.head
    if head is None:
        raise ModelError(f"token_shadow: no head was found in {subject.name}, whose input is to be matched.")
    seen: list[Tensor] = []

    def listen(module: Any, args: Any) -> None:
        seen.append(args[0])

    handle = subject.module.get_submodule(head.module).register_forward_pre_hook(listen)
    try:
        with torch.no_grad():
            _ = subject.logits(inputs=data.inputs, mask=data.mask)
    finally:
        handle.remove()
    units = seen[-1].double()
    if units.ndim == 3:
        units = units * data.mask.unsqueeze(-1)
    return units.reshape(data.size, -1)
