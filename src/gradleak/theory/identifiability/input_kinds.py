"""The laws of the first layer depend on how a token enters it: whether its position is added, and what the
normalization before the projections does (centers, adds a bias, scales only, nothing). Read from one forward pass of the
model itself. Must not know a model's type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradleak.mechanics.probing.probe import reads_position
from gradleak.models import Subject

Normalization = Literal["layer", "rms", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class InputLaw:
    """How a token becomes an input of the first attention.

    Attributes:
        positional: whether the position changes the input.
        rotary: whether positions enter as rotations of queries and keys.
        normalization: ``layer`` centers and scales, ``rms`` scales only.
        bias: whether the normalization adds a constant vector that is not zero.
        width: number of features.
    """

    positional: bool
    rotary: bool
    normalization: Normalization
    bias: bool
    width: int

    @property
    def room(self) -> int:
        """Dimensions that inputs can span at all: centering takes one away, a bias gives it back."""
        return self.width - (self.normalization == "layer" and not self.bias)


def read_input_law(subject: Subject, *, positions: int) -> InputLaw:
    """Reads the law off a text model by running its embedding on a few tokens."""
    anatomy = subject.anatomy
    first = anatomy.blocks[0].attention_inputs[0]
    count = min(4, anatomy.vocab_size)
    spread = torch.arange(count) * (anatomy.vocab_size // count)
    norm = _normalization_before(subject, first.module, spread)
    bias = getattr(norm, "bias", None)
    added = positions > 1 and reads_position(subject, first.module, spread, positions=positions)
    return InputLaw(
        positional=added,
        # A table of sines that is looked up but not added to the input turns queries and keys.
        rotary=anatomy.position_kind in {"rotary", "learned"} and not added,
        normalization="none" if norm is None else "layer" if _centers(norm, first.in_features) else "rms",
        bias=isinstance(bias, Tensor) and bool(bias.any()),
        width=first.in_features,
    )


def _normalization_before(subject: Subject, path: str, ids: Tensor) -> nn.Module | None:
    """The module whose output is, entry by entry, what the map at ``path`` reads, if its parameters are all vectors."""
    outputs: list[tuple[nn.Module, Tensor]] = []
    read: list[Tensor] = []

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.append((module, output))

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read.append(args[0] if args else next(iter(kwargs.values())))

    vectors = [
        module
        for module in subject.module.modules()
        if (own := list(module.parameters(recurse=False))) and all(p.ndim == 1 for p in own)
    ]
    handles = [module.register_forward_hook(keep) for module in vectors]
    handles.append(subject.module.get_submodule(path).register_forward_pre_hook(look, with_kwargs=True))
    try:
        with torch.no_grad():
            subject.logits(inputs=ids.unsqueeze(0))
    finally:
        for handle in handles:
            handle.remove()
    same = [module for module, output in outputs if output.shape == read[0].shape and torch.equal(output, read[0])]
    return same[0] if same else None


def _centers(norm: nn.Module, width: int) -> bool:
    """Whether the normalization removes the mean: its answer to a constant vector with unit gain is nothing."""
    own = dict(norm.named_parameters(recurse=False))
    wave = torch.linspace(1.0, 2.0, width).reshape(1, 1, -1)
    ones, zeros = ({n: torch.full_like(p, v) for n, p in own.items()} for v in (1.0, 0.0))
    ones |= {n: z for n, z in zeros.items() if n == "bias"}
    with torch.no_grad():
        unit = functional_call(norm, ones, (wave,)) - functional_call(norm, zeros, (wave,))
    return float(unit.mean().abs()) < 1e-4 * float(unit.abs().max())
