"""Why: a linear layer "reads" its input; its gradient in the update tells which inputs it read. A reader pairs the
place in the model with the column space of what was shared. Also the first test of every token at every position.
Must not know how sequences are put together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from gradleak.core.errors import NotApplicableError
from gradleak.mechanics.probe import chunks, linear_inputs, reads_context, reads_position
from gradleak.mechanics.span import Null, Subspace, accept, column_space, fit_null
from gradleak.models import Anatomy, LinearMap, Subject

_SKETCH_COLUMNS = 48
_SKETCH_MARGIN = 1.5
"""A sketch of 48 columns keeps a norm within 10 % (one standard deviation): half as much again is five of them."""
_NULL_TOKENS = 512
FALSE_ALARM_RATE = 1e-3
"""Probability that one whole family of tests accepts any non-member (Bonferroni within the family)."""


NoiseOf = Callable[[str], float]
"""Standard deviation per entry that is known to sit on a released tensor, by parameter name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """A place in the model whose input was recorded in the update.

    Attributes:
        path: module whose input is tested.
        space: column space of the shared gradients of all maps that read this input.
        weights: the parameters behind it.
    """

    path: str
    space: Subspace
    weights: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """The subject as the probe runs it: with its own or with other parameter values."""

    subject: Subject
    parameters: Mapping[str, Tensor] | None = None

    @property
    def vocab_size(self) -> int:
        return self.subject.anatomy.vocab_size

    def inputs(
        self, readers: Sequence[Reader], ids: Int64[Tensor, "batch seq"], mask: Bool[Tensor, "batch seq"] | None = None
    ) -> list[Float[Tensor, "batch seq features"]]:
        found = linear_inputs(self.subject, [r.path for r in readers], ids, mask=mask, parameters=self.parameters)
        return [found[r.path] for r in readers]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidates:
    """Tokens that pass the first test, per position; where positions do not enter the input all entries are equal.

    Attributes:
        tokens: token ids per position, best first; residuals beside them.
        nearest: per position, the token with the smallest residual of all, whether it passes or not.
        null_cut: residual below which no non-member is expected among all pairs.
        positional: whether the input depends on the position.
    """

    tokens: tuple[Int64[Tensor, " tokens"], ...]
    residuals: tuple[Float[Tensor, " tokens"], ...]
    nearest: Int64[Tensor, " positions"]
    null_cut: float
    positional: bool

    def length(self) -> int:
        """Number of leading positions up to the last one with a candidate."""
        filled = [p for p, ids in enumerate(self.tokens) if ids.numel()]
        return filled[-1] + 1 if filled else 0


def input_drift(model: Model, maps: Sequence[LinearMap], rng: torch.Generator) -> float:
    """Relative change of a layer's input between the model's own parameters and those it is probed with (rms)."""
    if not model.parameters:
        return 0.0
    ids = torch.randint(model.vocab_size, (16, 4), generator=rng)
    path = maps[0].module
    moved = linear_inputs(model.subject, (path,), ids, parameters=model.parameters)[path]
    still = linear_inputs(model.subject, (path,), ids)[path]
    return float((moved - still).norm() / still.norm())


def make_reader(
    update: Mapping[str, Tensor],
    maps: Sequence[LinearMap],
    *,
    noise_std: NoiseOf,
    summands: int,
    drift: float = 0.0,
) -> Reader | None:
    """The reader of the input that ``maps`` share, or None if none of their weights is in the update or all are zero."""
    shared = [m for m in maps if m.weight in update and bool(update[m.weight].any())]
    if not shared:
        return None
    space = column_space(
        [m.as_matrix(update[m.weight]).T for m in shared],
        noise_std=[noise_std(m.weight) for m in shared],
        summands=summands,
        extra_precision=drift,
    )
    return Reader(path=shared[0].module, space=space, weights=tuple(m.weight for m in shared))


def first_reader(
    update: Mapping[str, Tensor], anatomy: Anatomy, *, noise_std: NoiseOf, summands: int, drift: float = 0.0
) -> Reader:
    """The reader of the first attention's input. Raises ``NotApplicableError`` naming what the update lacks."""
    maps = anatomy.blocks[0].attention_inputs
    reader = make_reader(update, maps, noise_std=noise_std, summands=summands, drift=drift)
    if reader is None:
        raise NotApplicableError(
            f"The span attack reads the gradient of the first attention's projections ({', '.join(m.weight for m in maps)}); "
            "the update holds none of them, or only zeros."
        )
    return reader


def context_readers(
    update: Mapping[str, Tensor],
    model: Model,
    *,
    noise_std: NoiseOf,
    summands: int,
    drift: float = 0.0,
    at_most: int = 2,
) -> tuple[Reader, ...]:
    """The first readers behind the first attention whose input depends on the other tokens and is not full rank."""
    anatomy = model.subject.anatomy
    groups: list[Sequence[LinearMap]] = [(anatomy.blocks[0].attention_output,), anatomy.blocks[0].mlp_inputs]
    for block in anatomy.blocks[1:2]:
        groups += [block.attention_inputs, (block.attention_output,), block.mlp_inputs]
    few = torch.arange(min(4, model.vocab_size))
    found: list[Reader] = []
    for maps in groups:
        reader = make_reader(update, maps, noise_std=noise_std, summands=summands, drift=drift)
        if reader is None or reader.space.rank >= reader.space.features:
            continue
        if reads_context(model.subject, reader.path, few):
            found.append(reader)
        if len(found) == at_most:
            break
    return tuple(found)


def find_candidates(
    reader: Reader, model: Model, *, positions: int, rng: torch.Generator, keep_at_most: int = 4096
) -> Candidates:
    """Every token at every position, tested for membership in the reader's space.

    A row of one token repeated gives its input at all positions in one pass, since before the first attention a
    position knows only its own token. A sketch of the complement screens the vocabulary, the exact residual decides.

    Raises:
        NotApplicableError: if the space is so full, or so noisy, that members cannot be told from the rest.
    """
    sample = torch.randperm(model.vocab_size, generator=rng)[:_NULL_TOKENS]
    positional = reads_position(model.subject, reader.path, sample[:4], positions=positions)
    width = positions if positional else 1
    null, typical = _null_of(reader, model, sample, width)
    cut = null.cut(FALSE_ALARM_RATE / (model.vocab_size * width))
    if not cut > typical:
        raise NotApplicableError(
            f"The gradients of the first attention span {reader.space.rank} of {reader.space.features} dimensions with "
            f"relative noise {typical:.1e}: a token of the batch cannot be told from any other. The batch holds more "
            "distinct inputs than the model is wide, or the update was altered (noise, pruning, signs, an adaptive optimizer)."
        )
    tokens, places, residuals, nearest = _screen(reader, model, width, cut, rng)
    per_position: list[tuple[Tensor, Tensor]] = []
    for p in range(width):
        here = (places == p).nonzero().flatten()
        here = here[residuals[here].argsort()][:keep_at_most]
        per_position.append((tokens[here], residuals[here]))
    if not positional:
        per_position = per_position * positions
    return Candidates(
        tokens=tuple(ids for ids, _ in per_position),
        residuals=tuple(values for _, values in per_position),
        nearest=nearest.expand(positions) if width == 1 else nearest,
        null_cut=cut,
        positional=positional,
    )


def _null_of(reader: Reader, model: Model, sample: Tensor, width: int) -> tuple[Null, float]:
    """The null fitted on a sample of tokens at all positions, and the residual a typical member would show."""
    residuals, expected = [], []
    for part in chunks(len(sample), width * reader.space.features):
        (z,) = model.inputs((reader,), sample[part].unsqueeze(1).expand(-1, width))
        residuals.append(reader.space.residual(z).flatten())
        expected.append(reader.space.expected(z).flatten())
    return fit_null(torch.cat(residuals)), float(torch.cat(expected).median())


def _screen(
    reader: Reader, model: Model, width: int, cut: float, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Accepted pairs (token ids, positions, residuals), and the token nearest to the space at every position."""
    sketch = reader.space.sketch(_SKETCH_COLUMNS, rng)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    nearest, least = torch.zeros(width, dtype=torch.int64), torch.full((width,), math.inf)
    for part in chunks(model.vocab_size, width * reader.space.features):
        ids = torch.arange(part.start, part.stop)
        (z,) = model.inputs((reader,), ids.unsqueeze(1).expand(-1, width))
        length = z.norm(dim=-1)
        rough = torch.where(length > 0, (z @ sketch.to(z.dtype)).norm(dim=-1) / length, math.inf)
        values, best = rough.min(dim=0)
        nearest, least = torch.where(values < least, ids[best], nearest), torch.minimum(values, least)
        rows, places = (rough < _SKETCH_MARGIN * cut).nonzero(as_tuple=True)
        vectors = z[rows, places]
        residual = reader.space.residual(vectors)
        good = accept(residual, reader.space.expected(vectors), null_cut=cut)
        kept.append((ids[rows[good]], places[good], residual[good]))
    tokens, places, residuals = (torch.cat(column) for column in zip(*kept, strict=True))
    return tokens, places, residuals, nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The context test on a set of rows: which pass, and how far each is from the floor (mean log ratio)."""

    passed: Bool[Tensor, " rows"]
    excess: Float[Tensor, " rows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Per reader, the law of non-members at one place and the residual that a member typically shows there."""

    nulls: tuple[Null, ...]
    typical: tuple[float, ...]


def calibrate(readers: Sequence[Reader], null_vectors: Sequence[Float[Tensor, "samples features"]]) -> Calibration:
    """Reads the calibration off inputs that are almost surely no members."""
    return Calibration(
        nulls=tuple(fit_null(r.space.residual(z)) for r, z in zip(readers, null_vectors, strict=True)),
        typical=tuple(float(r.space.expected(z).median()) for r, z in zip(readers, null_vectors, strict=True)),
    )


def judge_rows(
    readers: Sequence[Reader],
    vectors: Sequence[Float[Tensor, "rows features"]],
    calibration: Calibration,
    *,
    tests: int,
) -> Verdict:
    """Tests rows against several readers, each as far as it can tell members from the null.

    The reader with the widest margin between a member's expected residual and the null's cut decides; another one may
    object only if its own margin is at least a decade.
    """
    margins, verdicts, excesses = [], [], []
    for reader, rows, null, typical in zip(readers, vectors, calibration.nulls, calibration.typical, strict=True):
        cut = null.cut(FALSE_ALARM_RATE / max(1, tests))
        residual, expected = reader.space.residual(rows), reader.space.expected(rows)
        margins.append(math.log10(max(cut, 1e-300) / typical))
        verdicts.append(accept(residual, expected, null_cut=cut))
        excesses.append((residual.clamp(min=1e-12) / expected).log().clamp(min=0.0))
    best = max(range(len(margins)), key=margins.__getitem__)
    usable = [i for i, margin in enumerate(margins) if i == best or margin >= 1.0]
    return Verdict(
        passed=torch.stack([verdicts[i] for i in usable]).all(0),
        excess=torch.stack([excesses[i] for i in usable]).mean(0),
    )
