"""A change of the data that leaves the update as it is can never be undone by any attack. The candidates are known
(order of records and tokens, sign, what a normalization removes); whether this model with this loss has them is tried on
the model itself. Must not know a model's type or any attack.

Each candidate is a map of the embeddings. It counts as an invariance if it moves the gradient by less than a thousandth
of what a random change of the same length moves it by; rounding in float32 stays far below that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradleak.core.batch import IGNORED, Batch
from gradleak.models import Subject

_HOLDS = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Invariance:
    """A change of the data, and whether the gradient sees it.

    Attributes:
        name: of the change, in words.
        continuous: whether it is a direction (it takes dimensions away from what can be known) or a discrete symmetry.
        dimensions: directions per token, if continuous.
        ratio: how far it moves the gradient, in units of a random change of the same length.
    """

    name: str
    continuous: bool
    dimensions: int
    ratio: float

    @property
    def holds(self) -> bool:
        return self.ratio < _HOLDS


def probe_invariances(subject: Subject, rng: torch.Generator, *, tokens: int = 5) -> tuple[Invariance, ...]:
    """Tries every candidate on two random records of a text model."""
    ids = torch.randint(subject.anatomy.vocab_size, (2, tokens), generator=rng)
    labels = _labels(subject, ids)
    gradient = _Gradient(subject, ids, labels)
    x = subject.embed(ids).detach()
    start = gradient(x)

    def ratio(changed: Tensor, *, records: Tensor | None = None) -> float:
        moved = gradient(changed, records=records)
        noise = torch.randn(x.shape, generator=rng)
        length = (changed - x).norm()
        random = gradient(x + noise * (length / noise.norm()))
        return _distance(moved, start) / max(_distance(random, start), torch.finfo(torch.float32).tiny)

    turned = torch.tensor([1, 0])
    ratios = [
        ("order of the records", False, 0, ratio(x[turned], records=turned)),
        ("order of the tokens in a record", False, 0, ratio(x.roll(1, dims=1))),
        ("sign of every embedding", False, 0, ratio(-x)),
    ]
    for name, direction in directions(subject, ids).items():
        ratios.append((name, True, 1, ratio(x + _per_token(x, rng) * direction)))
    return tuple(
        Invariance(name=name, continuous=continuous, dimensions=dimensions, ratio=value)
        for name, continuous, dimensions, value in ratios
    )


def directions(subject: Subject, ids: Tensor) -> Mapping[str, Float[Tensor, "batch seq model"]]:
    """Candidates for directions of a token's embedding that no gradient sees, by name; each token has its own.

    What LayerNorm and RMSNorm remove. Rotations of queries and keys, and the constant that softmax ignores in the keys,
    are no directions of the data: the gradients of the other maps see every change of an input.
    """
    x = subject.embed(ids).detach()
    size = x.norm() / x.numel() ** 0.5
    by_name = {"a constant added to every feature of a token": size * torch.ones_like(x)}
    whole = _first_normalized(subject, ids)
    if whole is not None:
        by_name["the length of a token's embedding with its position"] = 0.2 * whole
    return by_name


def _per_token(x: Tensor, rng: torch.Generator) -> Float[Tensor, "batch seq 1"]:
    return 0.5 + torch.rand(*x.shape[:2], 1, generator=rng)


def _labels(subject: Subject, ids: Tensor) -> Tensor:
    if subject.loss.labels_records:
        return torch.arange(ids.shape[0]) % subject.classes
    own = subject.loss.labels_from(ids, torch.ones_like(ids, dtype=torch.bool))
    if own is not None:
        return own
    labels = torch.full_like(ids, IGNORED)
    labels[:, 1] = ids[:, 1]
    return labels


@dataclass(frozen=True, slots=True)
class _Gradient:
    """The gradient of everything but the token table, as a function of the embeddings."""

    subject: Subject
    ids: Tensor
    labels: Tensor

    def __call__(self, x: Tensor, *, records: Tensor | None = None) -> Mapping[str, Tensor]:
        labels = self.labels if records is None else self.labels[records]
        batch = Batch(inputs=self.ids, mask=torch.ones_like(self.ids, dtype=torch.bool), labels=labels)
        table = self.subject.anatomy.token_embedding
        leaves = {
            name: value.detach().requires_grad_() for name, value in self.subject.trainable().items() if name != table
        }
        with torch.enable_grad():
            logits = self.subject.logits(leaves, embeddings=x, mask=batch.mask)
            loss = self.subject.loss.per_group(
                logits, self.subject.loss.targets(batch.labels, self.subject.classes)
            ).sum()
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, gradients, strict=True))


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return float(torch.stack([torch.dist(a[name], b[name]) for name in a]).norm())


def _first_normalized(subject: Subject, ids: Tensor) -> Tensor | None:
    """What the first module with only vectors as parameters reads: embedding plus position, where they are added."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...]) -> None:
        if not seen and args:
            seen.append(args[0])

    vectors = [
        module
        for module in subject.module.modules()
        if (own := list(module.parameters(recurse=False))) and all(p.ndim == 1 for p in own)
    ]
    handles = [module.register_forward_pre_hook(look) for module in vectors]
    try:
        with torch.no_grad():
            width = subject.embed(ids).shape
            subject.logits(inputs=ids)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0] if seen and seen[0].shape == width else None
