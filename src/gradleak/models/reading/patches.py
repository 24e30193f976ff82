"""Where a vision transformer turns pixels into tokens: which map cuts the picture into patches, and which table is added to
what that map makes. Both are read from the data flow of a few float64 passes, never from names. Must not know any attack.

    token_p = W x_p + b + Σ_r M_rp E_r      x_p a patch, E the table, M its mixing (unit vectors, or an interpolation)

A parameter is the table if, and only if, its gradient is M times the gradient of the patch map's output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradleak.models.anatomy import Anatomy
from gradleak.models.calling import image_shape, reads_pixels
from gradleak.models.running.tracing import evaluating

_PROBES = 3
"""Random scalar functions whose gradients the mixing is fitted to."""

_TOLERANCE = 1e-5
"""A row of the table follows the patches to rounding (some models interpolate in float32), or it belongs to another token."""

_EXACT = 1e-6
"""Entries of the mixing that are closer than this to a whole number are one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchEmbedding:
    """The entrance of a vision transformer.

    Attributes:
        module: path of the map that reads the pixels.
        weight, bias: its parameter names.
        table: parameter name of the table that is added to its output; None if there is none.
        mixing: M, ``[table rows, patches]`` in float64, rows of the table in the order in which they are stored and zero for
            rows of other tokens; None without a table.
        shape: channels, height and width of the images.
        patch: height and width of a patch.
    """

    module: str
    weight: str
    bias: str | None
    table: str | None
    mixing: Float[Tensor, "rows patches"] | None
    shape: tuple[int, int, int]
    patch: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.shape[1] // self.patch[0], self.shape[2] // self.patch[1]

    @property
    def count(self) -> int:
        """Patches of one image."""
        return math.prod(self.grid)

    @property
    def features(self) -> int:
        """Numbers in one patch."""
        return self.shape[0] * math.prod(self.patch)

    @property
    def covers(self) -> bool:
        """Whether every pixel belongs to a patch."""
        return self.count * self.features == math.prod(self.shape)

    def to_patches(
        self, pixels: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch patches features"]:
        """Patches row by row, each with its entries in the order of the map's weight."""
        return nn.functional.unfold(pixels, self.patch, stride=self.patch).mT

    def to_pixels(
        self, patches: Float[Tensor, "batch patches features"], *, rest: float = 0.0
    ) -> Float[Tensor, "batch channels height width"]:
        """The image that has these patches; pixels at the lower and right edge that no patch covers are ``rest``."""
        rows, columns = (many * one for many, one in zip(self.grid, self.patch, strict=True))
        covered = nn.functional.fold(patches.mT, (rows, columns), self.patch, stride=self.patch)
        _, height, width = self.shape
        return nn.functional.pad(covered, (0, width - columns, 0, height - rows), value=rest)


def read_patch_embedding(module: nn.Module, anatomy: Anatomy) -> PatchEmbedding | None:
    """Reads the entrance of a vision transformer.

    Returns:
        None if the module reads no pixels, or the first map of the pixels does not cut them into disjoint patches.
    """
    if anatomy.kind != "vision" or not reads_pixels(module) or getattr(module, "config", None) is None:
        return None
    shape = image_shape(module)
    path = _patch_map(module, shape)
    if path is None:
        return None
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    conv: Any = module.get_submodule(path)
    entrance = PatchEmbedding(
        module=path,
        weight=names[id(conv.weight)],
        bias=None if conv.bias is None else names[id(conv.bias)],
        table=None,
        mixing=None,
        shape=shape,
        patch=(conv.kernel_size[0], conv.kernel_size[1]),
    )
    candidates = {
        name: parameter
        for name, parameter in module.named_parameters()
        if parameter.ndim >= 2 and parameter.shape[-1] == conv.out_channels and name != entrance.weight
    }
    slopes, made = _probe(module, path, anatomy.blocks[0].attention_inputs[0].module, shape, tuple(candidates))
    for name, slope in slopes.items():
        mixing = _mixing(slope, made)
        if mixing is not None:
            return PatchEmbedding(
                module=path,
                weight=entrance.weight,
                bias=entrance.bias,
                table=name,
                mixing=mixing,
                shape=shape,
                patch=entrance.patch,
            )
    return entrance


def in_double(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating buffers of a module in float64, for a functional call."""
    state = dict(module.named_parameters()) | dict(module.named_buffers())
    return {
        name: value.detach().double() if value.is_floating_point() else value.detach() for name, value in state.items()
    }


@contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    """Removes hooks at the end, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _patch_map(module: nn.Module, shape: tuple[int, int, int]) -> str | None:
    """The convolution that reads the pixels themselves, if its windows are disjoint and without margin."""
    pixels = _picture(shape, 0)
    readers: list[str] = []

    def watcher(path: str) -> Any:
        def see(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].shape == pixels.shape and torch.equal(args[0], pixels):
                readers.append(path)

        return see

    convolutions = {path: child for path, child in module.named_modules() if isinstance(child, nn.Conv2d)}
    handles = [child.register_forward_pre_hook(watcher(path)) for path, child in convolutions.items()]
    with hooked(handles), evaluating(module), torch.no_grad():
        torch.func.functional_call(module, in_double(module), kwargs={"pixel_values": pixels})
    if len(readers) != 1:
        return None
    conv = convolutions[readers[0]]
    disjoint = conv.kernel_size == conv.stride and conv.dilation == (1, 1) and conv.groups == 1
    return readers[0] if disjoint and conv.padding in ((0, 0), "valid") else None


def _picture(shape: tuple[int, int, int], number: int) -> Float[Tensor, "1 channels height width"]:
    """A picture without symmetries; not random."""
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(places * (0.7 + 0.31 * number) + number).reshape(1, *shape)


def _probe(
    module: nn.Module, path: str, reader: str, shape: tuple[int, int, int], candidates: tuple[str, ...]
) -> tuple[Mapping[str, Float[Tensor, "rows probes_width"]], Float[Tensor, "patches probes_width"]]:
    """Gradients of random functions of what the first attention reads: of each candidate, and of the patch map's output."""
    state = in_double(module)
    leaves = {name: state[name].requires_grad_() for name in candidates}
    made: list[Tensor] = []
    read: list[Tensor] = []

    def cut(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        made.append(output.detach().requires_grad_())
        return made[-1].clone()

    handles = [
        module.get_submodule(path).register_forward_hook(cut),
        module.get_submodule(reader).register_forward_pre_hook(lambda _, args: read.append(args[0])),
    ]
    rows: dict[str, list[Tensor]] = {name: [] for name in candidates}
    patches: list[Tensor] = []
    rng = torch.Generator().manual_seed(0)
    with hooked(handles), evaluating(module), torch.enable_grad():
        for number in range(_PROBES):
            made.clear()
            read.clear()
            torch.func.functional_call(module, state, kwargs={"pixel_values": _picture(shape, number)})
            weights = torch.randn(read[0].shape, generator=rng, dtype=torch.float64)
            slopes = torch.autograd.grad(
                (read[0] * weights).sum(), [made[0], *leaves.values()], allow_unused=True, materialize_grads=True
            )
            patches.append(slopes[0].flatten(2)[0].T)
            for name, slope in zip(leaves, slopes[1:], strict=True):
                rows[name].append(slope.reshape(-1, slope.shape[-1]))
    live = {name: torch.cat(parts, 1) for name, parts in rows.items() if any(bool(part.any()) for part in parts)}
    return live, torch.cat(patches, 1)


def _mixing(
    slope: Float[Tensor, "rows probes_width"], made: Float[Tensor, "patches probes_width"]
) -> Float[Tensor, "rows patches"] | None:
    """M with slope = M made on the rows that follow the patches and zero on the others; None if no row does."""
    mixing: Tensor = torch.linalg.lstsq(made.T, slope.T, driver="gelsd").solution.T
    off = (slope - mixing @ made).norm(dim=1) <= _TOLERANCE * slope.norm(dim=1).clamp_min(1e-30)
    follows = off & (slope.norm(dim=1) > 0)
    if not bool(follows.any()):
        return None
    kept = torch.where(follows.unsqueeze(1), mixing, 0.0)
    # A selection of rows is exact; what the fit leaves beside zero and one is rounding.
    whole = kept.round()
    return torch.where((kept - whole).abs() < _EXACT, whole, kept)
