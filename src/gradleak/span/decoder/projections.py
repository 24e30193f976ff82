"""Why: what the first attention hands on decides the inputs of the maps behind it: that of its own output map, and,
where the residual stream adds up plainly, that of the feed-forward part. Both are affine in the attended vector up to
one normalization, so their membership tests fold into one matrix product for all continuations.
Must not know how sequences are searched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gradleak.mechanics.probing.first_input import Norm, before_norm, read_first_input, read_norm
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.mechanics.subspace.subspace import Subspace
from gradleak.models import LinearMap
from gradleak.span.reading.observed_layer import ObservedLayer

_OUTSIDE_COLUMNS, _TILT_COLUMNS, _LENGTH_COLUMNS = 32, 16, 32
_ROUGH_COLUMNS, _SHARP_ROUGH_COLUMNS = 8, 32
"""Columns of a rough test where members and others are decades apart, and where they are not."""
_CLEAR = 100.0
"""Ratio of a non-member's residual to a member's above which a sketch of the complement is as good as all of it."""
_SHARP_COLUMNS = 128
"""Random columns for lengths where the complement is not sketched: they keep a length within 6 %."""
_SAMPLE_ROWS, _SAMPLE_POSITIONS = 2, 16
_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """A reader's test as columns that are applied to attended vectors.

    The input tested is z = gain ∘ C h / σ(h) + offset with h = stream + W o; o is attended. Columns come in groups:
    outside the space, tilt, length of gain ∘ C h, and where there is an offset: length of C h, along the offset.

    Attributes:
        base: what the columns make of the stream (and bias) of each candidate.
        widths: number of columns of each group.
        constant: what the tilt columns make of the offset.
    """

    space: Subspace
    columns: Float[Tensor, "width columns"]
    base: Float[Tensor, "rows seq columns"] | None
    widths: tuple[int, ...]
    offset_norm: float
    constant: Float[Tensor, " tilt"]

    def since(self, start: int) -> Projection:
        """The same where sequences begin at position ``start``."""
        return self if self.base is None else replace(self, base=self.base[:, start:])

    def judge(
        self, attended: Float[Tensor, "pairs width"], rows: Int64[Tensor, " pairs"], position: int
    ) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Residual and a member's expected residual of each continuation, in float64.

        Args:
            attended: what attention hands on at ``position``.
            rows: the candidate that stands there.
        """
        made = attended @ self.columns
        if self.base is not None:
            made = made + self.base[rows, position]
        return self.read(made)

    def read(self, made: Float[Tensor, "*batch columns"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """The same, from what the columns make of stream and attended vector together."""
        outside, tilt, length, *rest = made.split(self.widths, dim=-1)
        square = length.square().sum(-1)
        if rest:
            sigma = rest[0].square().sum(-1).sqrt()
            square = square + 2 * sigma * rest[1][..., 0] + (sigma * self.offset_norm) ** 2
            tilt = tilt + sigma.unsqueeze(-1) * self.constant
        size = square.clamp(min=1e-30).sqrt()
        expected = self.space.noise * math.sqrt(self.space.rest) * (tilt.norm(dim=-1) / size).double()
        return (outside.norm(dim=-1) / size).double(), expected.hypot(expected.new_tensor(self.space.precision))

    def rough(self, rng: torch.Generator) -> Projection:
        """The same test by fewer columns; without the tilt where a member's largest residual will do in its place."""
        outside, tilt, *lengths = self.widths
        clear = outside == _OUTSIDE_COLUMNS
        few = _ROUGH_COLUMNS if clear else _SHARP_ROUGH_COLUMNS
        parts = [_fewer(outside, few, rng), torch.eye(tilt)[:, : 0 if clear else tilt]]
        parts += [_fewer(width, few, rng) for width in lengths]
        mixer = torch.block_diag(*parts).to(self.columns.device, self.columns.dtype)
        return replace(
            self,
            columns=self.columns @ mixer,
            base=None if self.base is None else self.base @ mixer,
            widths=tuple(part.shape[1] for part in parts),
            constant=self.constant @ parts[1].to(self.constant.device, self.constant.dtype),
        )

    def margin(self, cut: float) -> float:
        """Decades between a member's residual and the smallest that a wrong continuation may show."""
        return math.log10(max(cut, 1e-300) / self.space.typical)


def output_projection(reader: ObservedLayer, dtype: torch.dtype, rng: torch.Generator) -> Projection:
    """The test at the input of the attention's output map: the attended vector itself."""
    return _projection(reader.space, Norm.none(reader.space.basis.T), None, None, dtype, rng)


def stream_projection(
    reader: ObservedLayer, output: LinearMap, model: Model, tokens: Int64[Tensor, "rows seq"], rng: torch.Generator
) -> Projection | None:
    """The test at a map that reads norm(x + W o + b), x the residual stream before the first attention.

    Returns:
        None if the model does something else between (checked on sample rows), as parallel or post-normalized blocks do.
    """
    stream = read_stream(reader.path, output, model, tokens)
    if stream is None:
        return None
    return _projection(reader.space, stream.norm, stream.weight, stream.base, stream.weight.dtype, rng)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """What a map reads behind the first attention: norm(base + W o), base the stream of a candidate and the map's bias."""

    base: Float[Tensor, "rows seq features"]
    weight: Float[Tensor, "features width"]
    norm: Norm

    def behind(
        self, attended: Float[Tensor, "*batch extensions width"], rows: Int64[Tensor, " extensions"], position: int
    ) -> Float[Tensor, "*batch extensions features"]:
        return self.read(self.base[rows, position], attended)

    def read(
        self, base: Float[Tensor, "*any features"], attended: Float[Tensor, "*batch width"]
    ) -> Float[Tensor, "*batch features"]:
        """The same from the stream of each."""
        h = self.norm.center(base + attended @ self.weight.T)
        size = h.square().mean(dim=-1, keepdim=True).sqrt() if self.norm.normalized else 1.0
        return self.norm.gain * h / size + self.norm.offset


def read_stream(path: str, output: LinearMap, model: Model, tokens: Int64[Tensor, "rows seq"]) -> Stream | None:
    """The stream at ``path`` for candidates; None if the model does something else between (checked on sample rows)."""
    subject, parameters = model.subject, model.parameters
    first = subject.anatomy.first_maps()[0].module
    law = read_first_input(subject, first, positions=tokens.shape[1], parameters=parameters)
    if law is None:
        return None
    sample = tokens[:_SAMPLE_ROWS, :_SAMPLE_POSITIONS]
    module, h, z = before_norm(subject, path, sample, parameters=parameters)
    norm = read_norm(module, h, z)
    weight = output.as_matrix(_value(model, output.weight))
    bias = 0.0 if output.bias is None else _value(model, output.bias)
    attended = linear_inputs(subject, (output.module,), sample, parameters=parameters)[output.module]
    made = law.before_norm(sample) + attended @ weight.T + bias
    if norm is None or h.shape != made.shape or not bool((made - h).norm() <= _TOLERANCE * h.norm()):
        return None
    return Stream(base=law.before_norm(tokens) + bias, weight=weight, norm=norm)


def _projection(
    space: Subspace, norm: Norm, weight: Tensor | None, stream: Tensor | None, dtype: torch.dtype, rng: torch.Generator
) -> Projection:
    clear = _CLEAR * space.typical < math.sqrt(space.rest / space.features)
    count = _OUTSIDE_COLUMNS if clear else space.features
    lengths = _LENGTH_COLUMNS if clear else _SHARP_COLUMNS
    offset = norm.offset.double()
    tilt = (space.basis / space.singular) @ _mixer(space.rank, _TILT_COLUMNS, rng).to(space.basis.device)
    frame = _mixer(space.features, lengths, rng).to(space.basis.device)
    plain = Norm(gain=torch.ones_like(offset), offset=offset, centered=norm.centered, normalized=norm.normalized)
    groups = [norm.fold(space.sketch(count, rng, without=offset)), norm.fold(tilt), norm.fold(frame)]
    shifted = norm.normalized and bool(offset.any())
    if shifted:
        groups += [plain.fold(frame) / math.sqrt(space.features), norm.fold(offset.unsqueeze(1))]
    columns = torch.cat(groups, dim=1)
    folded = columns if weight is None else weight.double().T @ columns
    return Projection(
        space=space,
        columns=folded.to(dtype),
        base=None if stream is None else (stream.double() @ columns).to(dtype),
        widths=tuple(group.shape[1] for group in groups),
        offset_norm=float(offset.norm()),
        constant=(offset @ tilt).to(dtype),
    )


def _fewer(width: int, few: int, rng: torch.Generator) -> Tensor:
    """A mixture of ``width`` columns to at most ``few`` that keeps lengths on average."""
    if width <= few:
        return torch.eye(width)
    return torch.linalg.qr(torch.randn(width, few, generator=rng)).Q * math.sqrt(width / few)


def _mixer(rows: int, columns: int, rng: torch.Generator) -> Tensor:
    return torch.randn(rows, columns, generator=rng, dtype=torch.float64) / math.sqrt(columns)


def _value(model: Model, name: str) -> Tensor:
    own = model.subject.module.get_parameter(name).detach()
    return own if model.parameters is None else model.parameters.get(name, own)
