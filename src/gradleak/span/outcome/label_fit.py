"""Why: where the head's gradient is not shared, the labels of known records still show in every other tensor, and linearly, so that they
need not be tried one set after the other. Must not know any attack.

With a softmax cross-entropy the gradient of a record under label c is Jᵀ(p − e_c). A client that averages over its records shares

    G = 1/B Σ_b Σ_c x_bc g_b(c),    x_b a corner of the simplex,

one gradient a record and class, of which a few thousand entries are kept, and least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.core.batch import Batch
from gradleak.mechanics.client.trainer import ClientTrainer

_ENTRIES = 4096
_MOST_UNKNOWNS = 512
"""Records × classes: each costs one gradient of a record."""


def fitted_labels(
    update: Mapping[str, Tensor],
    trainer: ClientTrainer,
    inputs: Int64[Tensor, "batch seq"],
    mask: Bool[Tensor, "batch seq"],
    *,
    known: Sequence[int] | None,
    rng: torch.Generator,
    clock: Clock,
) -> tuple[int, ...] | None:
    """The label of every record; exact where the update is linear in them (one step), else the nearest.

    Args:
        known: the labels in some order, if they are known: each is then given to one record.

    Returns:
        None where that would take too many gradients, or the time was spent before the last of them.
    """
    classes = trainer.subject.classes
    if len(inputs) * classes > _MOST_UNKNOWNS:
        return None
    replayed = {name: update[name] for name in trainer.names() if name in update}
    picked = picked_entries(replayed, rng)
    made: list[Tensor] = []
    for row, real in zip(inputs, mask, strict=True):
        for label in range(classes):
            if clock.spent():
                return None
            batch = Batch(inputs=row.unsqueeze(0), mask=real.unsqueeze(0), labels=torch.tensor([label]))
            made.append(read_entries(trainer.update(batch, rng), picked))
    alone = torch.stack(made).view(len(inputs), classes, -1) / len(inputs)
    # Shares of a record sum to one: what remains are those of all classes but the first.
    columns = (alone[:, 1:] - alone[:, :1]).flatten(0, 1).T
    wanted = read_entries(replayed, picked) - alone[:, 0].sum(dim=0)
    others = torch.linalg.lstsq(columns, wanted.unsqueeze(1), driver="gelsd").solution.view(len(inputs), classes - 1)
    return _rounded(torch.cat((1 - others.sum(dim=1, keepdim=True), others), dim=1), known)


def _rounded(shares: Float[Tensor, "batch classes"], known: Sequence[int] | None) -> tuple[int, ...]:
    if known is None:
        return tuple(shares.argmax(dim=1).tolist())
    labels = torch.tensor(known)
    _, order = linear_sum_assignment(shares[:, labels].numpy(), maximize=True)
    return tuple(labels[torch.from_numpy(order)].tolist())


def picked_entries(update: Mapping[str, Tensor], rng: torch.Generator) -> dict[str, Int64[Tensor, " entries"]]:
    """Entries of every tensor, as many of each."""
    each = max(1, _ENTRIES // len(update))
    return {name: torch.randint(tensor.numel(), (each,), generator=rng) for name, tensor in update.items()}


def read_entries(
    update: Mapping[str, Tensor], picked: Mapping[str, Int64[Tensor, " entries"]]
) -> Float[Tensor, " entries"]:
    """On the host, whose least squares take matrices without full rank."""
    return torch.cat([update[name].flatten()[entries].double().cpu() for name, entries in picked.items()])
