"""Where a set of records does not give back the update, another one may: of all sequences that pass every test, and of their
beginnings, which make a batch, and how often does each stand in it? Must not know how the sequences were found.

A client that averages over B records shares G = 1/B Σ_r Σ_c x_rc g_r(c), linear in x_rc ≥ 0, the number of copies of record r under label c,
with Σ x = B. Non-negative least squares over a few thousand entries finds them: at most as many columns are positive as there are
entries, so that an over-complete list does no harm. Copies under opposite labels cancel where p is ½, and nothing tells their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from scipy.optimize import nnls
from torch import Tensor

from gradleak.core.attack import Clock
from gradleak.core.batch import Batch
from gradleak.mechanics.client.trainer import ClientTrainer
from gradleak.span.outcome.label_fit import picked_entries, read_entries

Records = tuple[Int64[Tensor, " length"], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What was set by hand.

    Attributes:
        gradients: records × labels that are tried in one round; each costs a gradient of one record.
    """

    gradients: int = 512


SETTINGS = Settings()


@dataclass(frozen=True, kw_only=True, slots=True)
class Recombination:
    """Records with copies, the label of each, and the number of copies that least squares gave before it was rounded."""

    records: Records
    labels: tuple[int, ...]
    copies: tuple[float, ...]


def recombinations(
    update: Mapping[str, Tensor],
    trainer: ClientTrainer,
    pool: Sequence[Tensor],
    *,
    batch_size: int,
    rng: torch.Generator,
    clock: Clock,
) -> Iterator[Recombination]:
    """Batches made of the sequences of ``pool``, then of these and their beginnings; each is a proposal and no more."""
    classes = trainer.subject.classes
    most = SETTINGS.gradients // classes
    fit = _Fit(update=update, trainer=trainer, batch_size=batch_size, rng=rng, clock=clock, alone={})
    whole = list(dict.fromkeys(tuple(ids.tolist()) for ids in pool))[:most]
    first = fit.solved(whole)
    if first is None:
        return
    yield first
    likely = list(dict.fromkeys((*(tuple(ids.tolist()) for ids in first.records), *whole)))
    shorter = [record[:end] for end in range(1, max(map(len, likely))) for record in likely if end < len(record)]
    more = list(dict.fromkeys((*likely, *shorter)))
    second = fit.solved(more[:most]) if len(more) > len(likely) else None
    if second is not None:
        yield second


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fit:
    update: Mapping[str, Tensor]
    trainer: ClientTrainer
    batch_size: int
    rng: torch.Generator
    clock: Clock
    alone: dict[tuple[int, ...], list[Tensor]]

    def solved(self, records: Sequence[tuple[int, ...]]) -> Recombination | None:
        """None where the time was spent before the last gradient."""
        replayed = {name: self.update[name] for name in self.trainer.names() if name in self.update}
        picked = picked_entries(replayed, torch.Generator().manual_seed(len(replayed)))
        for record in records:
            if self.clock.spent():
                return None
            if record not in self.alone:
                self.alone[record] = self._gradients(record, picked)
        columns = torch.stack([column for record in records for column in self.alone[record]], dim=1) / self.batch_size
        wanted = read_entries(replayed, picked)
        # The number of records is one more equation, as heavy as all others together.
        weight = float(wanted.norm()) or 1.0
        matrix = np.vstack((columns.numpy(), np.full((1, columns.shape[1]), weight / self.batch_size)))
        shares, _ = nnls(matrix, np.append(wanted.numpy(), weight))
        return self._rounded(records, torch.from_numpy(shares).view(len(records), -1))

    def _gradients(self, record: tuple[int, ...], picked: Mapping[str, Tensor]) -> list[Tensor]:
        ids = torch.tensor([record])
        mask = torch.ones_like(ids, dtype=torch.bool)
        labels = range(self.trainer.subject.classes)
        batches = [Batch(inputs=ids, mask=mask, labels=torch.tensor([label])) for label in labels]
        return [read_entries(self.trainer.update(batch, self.rng), picked) for batch in batches]

    def _rounded(self, records: Sequence[tuple[int, ...]], shares: Tensor) -> Recombination:
        """Whole copies, the largest remainders first, as many as the batch holds."""
        copies = shares.floor()
        rest = shares - copies
        for _ in range(max(0, self.batch_size - int(copies.sum()))):
            at = divmod(int(rest.argmax()), shares.shape[1])
            copies[at] += 1
            rest[at] -= 1
        # More copies than records: the smallest shares give way.
        while int(copies.sum()) > self.batch_size:
            at = divmod(int(torch.where(copies > 0, shares / copies.clamp(min=1), torch.inf).argmin()), shares.shape[1])
            copies[at] -= 1
        places = [(int(r), int(c)) for r, c in copies.nonzero().tolist() for _ in range(int(copies[r, c]))]
        return Recombination(
            records=tuple(torch.tensor(records[r]) for r, _ in places),
            labels=tuple(c for _, c in places),
            copies=tuple(float(shares[r, c]) for r, c in places),
        )
