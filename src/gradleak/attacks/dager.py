"""DAGER in its published form: fixed thresholds, every token at every position, every prefix run through the first block."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.core.attack import Attack, Clock, Reconstruction, Status
from gradleak.core.batch import Modality
from gradleak.core.errors import NotApplicableError, SpecError
from gradleak.core.knowledge import View
from gradleak.core.update import Update
from gradleak.mechanics.probing.probe import chunks, linear_inputs
from gradleak.models import Block, LinearMap, Subject

_SPARE_DIMENSIONS = 20
_WINDOW = 128
_ACTIVATIONS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class DAGER(Attack):
    """The plain span attack: membership by a fixed threshold, sequences by exhaustive growth or enumeration.

    A token is a candidate at a position if its normalized input to the first attention is nearer than ``tau1`` to the
    column space of that attention's gradients. Decoders: prefixes grow while the last position's input to the second
    attention is nearer than ``tau2``. Encoders: every combination of candidates is tried, up to ``combinations`` per
    length. It is here as the literature's yardstick; ``span`` is the attack to use.

    Args:
        tau1, tau2: thresholds of the two tests, positive.
        rank_tolerance: singular values below this share of the largest count as zero.
        combinations: most sentences of one length that are tried in an encoder.

    Raises:
        SpecError: for a value that is not positive.

    Guarantees:
        What it returns passed both tests at every position it tested; nothing is certified. Blind spots are those of
        ``span``: repeated records, records that are prefixes of others, the last token of a language-model loss.

    Source: Petrov et al., arXiv 2405.15586.
    Deviations: all projections of a layer are stacked (the authors' code does so for GPT-2 only); the vocabulary is run
        through the model's own first layers, not through copies of them; a model of one block is tested at its feed-forward
        input; spare beams and heuristics for sequences that
        miss a threshold are left out.
    """

    summary: ClassVar[str] = "The plain span attack of the literature, with its fixed thresholds; a yardstick for span."
    modalities: ClassVar[frozenset[Modality]] = frozenset({"text"})
    needs: ClassVar[frozenset[str]] = frozenset({"subject"})
    uses: ClassVar[frozenset[str]] = frozenset({"batch_size", "seq_len"})

    tau1: float = 1e-5
    tau2: float = 1e-3
    rank_tolerance: float = 1e-7
    combinations: int = 100_000

    def __post_init__(self) -> None:
        for name in ("tau1", "tau2", "rank_tolerance", "combinations"):
            if not getattr(self, name) > 0:
                raise SpecError(f"dager: {name}={getattr(self, name)} must be positive.")

    def run(self, update: Update, view: View, rng: torch.Generator, clock: Clock) -> Reconstruction:
        subject: Subject = view["subject"]
        blocks: tuple[Block, ...] = subject.anatomy.blocks
        first = _Layer.of(update, blocks[0].attention_inputs, self.rank_tolerance)
        behind = (
            (blocks[0].mlp_inputs or (blocks[0].attention_output,)) if len(blocks) == 1 else blocks[1].attention_inputs
        )
        second = _Layer.of(update, behind, self.rank_tolerance)
        window = min(view.get("seq_len") or _WINDOW, subject.anatomy.max_positions or _WINDOW)
        sets = self._candidates(first, subject, window, clock)
        skipped = 0
        if subject.anatomy.kind == "decoder":
            records, tested = self._grow(sets, second, subject, view.get("batch_size"), clock)
        else:
            records, tested, skipped = self._enumerate(sets, second, subject, clock)
        kept = records if view.get("batch_size") is None else records[: view["batch_size"]]
        status = Status.CONVERGED if kept else Status.NOTHING_FOUND
        return Reconstruction(
            records=tuple(kept),
            status=Status.BUDGET_SPENT if clock.spent() else status,
            message=f"{len(records)} sequences pass, {tested} tested."
            + (
                f" {skipped} lengths have more than {self.combinations} combinations and were left out."
                if skipped
                else ""
            ),
            statistics={
                "rank_first": float(first.basis.shape[1]),
                "rank_second": float(second.basis.shape[1]),
                "positions": float(len(sets)),
                "candidates_max": float(max((ids.numel() for ids in sets), default=0)),
                "tested": float(tested),
            },
        )

    def _candidates(self, layer: _Layer, subject: Subject, window: int, clock: Clock) -> list[Int64[Tensor, " tokens"]]:
        """Candidate tokens per position, up to the first position that has none."""
        sets: list[Tensor] = []
        for p in range(window):
            passing = []
            for part in chunks(subject.anatomy.vocab_size, (p + 1) * layer.basis.shape[0]):
                ids = torch.arange(part.start, part.stop)
                # Before the first attention a position knows only its own token: the same token everywhere will do.
                inputs = linear_inputs(subject, (layer.path,), ids.unsqueeze(1).expand(-1, p + 1))[layer.path]
                passing.append(ids[layer.distance(inputs[:, -1]) < self.tau1])
            sets.append(torch.cat(passing))
            if not sets[-1].numel() or clock.spent():
                break
        return sets if sets and sets[-1].numel() else sets[:-1]

    def _grow(
        self, sets: list[Tensor], layer: _Layer, subject: Subject, batch_size: int | None, clock: Clock
    ) -> tuple[list[Tensor], int]:
        front = torch.empty(1, 0, dtype=torch.int64)
        finished: list[Tensor] = []
        tested = 0
        for ids in sets:
            rows = torch.cat((front.repeat_interleave(ids.numel(), dim=0), ids.repeat(len(front)).unsqueeze(1)), dim=1)
            tested += len(rows)
            passed = _last_distances(layer, subject, rows) < self.tau2
            alive = passed.view(len(front), ids.numel()).any(dim=1)
            finished += list(front[~alive]) if front.shape[1] else []
            front = rows[passed]
            if not len(front) or clock.spent():
                break
        return [*front, *reversed(finished)], tested

    def _enumerate(
        self, sets: list[Tensor], layer: _Layer, subject: Subject, clock: Clock
    ) -> tuple[list[Tensor], int, int]:
        """Whole sentences, longest first: in an encoder no prefix can be tested by itself. Also how many were tested, and
        how many lengths were left out (their combinations are counted in Python's own integers, which do not overflow)."""
        records: list[Tensor] = []
        tested, skipped = 0, 0
        for length in range(len(sets), 0, -1):
            if math.prod(ids.numel() for ids in sets[:length]) > self.combinations:
                skipped += 1
                continue
            rows = torch.tensor(list(itertools.product(*(ids.tolist() for ids in sets[:length]))))
            tested += len(rows)
            far = []
            for part in chunks(len(rows), rows.shape[1] * layer.basis.shape[0] * _ACTIVATIONS):
                far.append(layer.distance(linear_inputs(subject, (layer.path,), rows[part])[layer.path]).amax(dim=1))
            records += list(rows[torch.cat(far) < self.tau2])
            if clock.spent():
                break
        return records, tested, skipped


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """An attention's input and the column space of its gradients."""

    path: str
    basis: Float[Tensor, "features rank"]

    @staticmethod
    def of(update: Update, maps: tuple[LinearMap, ...], tolerance: float) -> _Layer:
        shared = [m for m in maps if m.weight in update]
        if not shared:
            raise NotApplicableError(
                f"DAGER reads the gradients of {', '.join(m.weight for m in maps)}, and the update holds none of them."
            )
        stacked = torch.cat([m.as_matrix(update[m.weight]).T.double() for m in shared], dim=1)
        left, values, _ = torch.linalg.svd(stacked, full_matrices=False)
        rank = int((values > tolerance * values[0]).sum())
        return _Layer(path=shared[0].module, basis=left[:, : min(rank, len(stacked) - _SPARE_DIMENSIONS)])

    def distance(self, vectors: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch"]:
        """Distance of each normalized vector from the space."""
        z = torch.nn.functional.normalize(vectors.double(), dim=-1)
        return (z - (z @ self.basis) @ self.basis.T).norm(dim=-1)


def _last_distances(layer: _Layer, subject: Subject, rows: Tensor) -> Float[Tensor, " rows"]:
    distances = []
    for part in chunks(len(rows), rows.shape[1] * layer.basis.shape[0] * _ACTIVATIONS):
        distances.append(layer.distance(linear_inputs(subject, (layer.path,), rows[part])[layer.path][:, -1]))
    return torch.cat(distances) if distances else torch.empty(0, dtype=torch.float64)
