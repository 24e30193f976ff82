"""Why: the gradient holds the inputs that a layer had at the client, and the probe computes inputs of its own. They part where
the client's weights moved over local steps, where its model runs in a short number format, and where its dropout was on. Each
is measured by running the model both ways on random tokens. Must not know spaces or how sequences are searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from gradleak.core.update import Update
from gradleak.mechanics.probing.probe import linear_inputs
from gradleak.mechanics.subspace.number_format import significant_bits
from gradleak.models import Subject

MismatchOf = Callable[[str, float], float]
"""Relative distance of a client's inputs from the probe's, by path of the module that reads them and relative noise that the
gradients behind it show by themselves."""

_ROWS, _LENGTH = 16, 4
_FORMATS: Mapping[int, torch.dtype] = {8: torch.bfloat16, 11: torch.float16}
_ROUNDED: tuple[tuple[float, torch.dtype], ...] = ((5e-4, torch.bfloat16), (3e-5, torch.float16))
"""Relative noise from which a format is likely behind it: a third of its own rounding (``0.4247 · 2^−bits``), which sums and averages of
up to nine such gradients leave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationMismatch:
    """How far the inputs of the client's layers are from those of the probe.

    Attributes:
        midway: the parameters half way through local training; None where the update is one gradient.
        dtype: number format in which the client's model may have run; None for the subject's own.
        dropout: whether it trained with dropout.
    """

    subject: Subject
    midway: Mapping[str, Tensor] | None
    dtype: torch.dtype | None
    dropout: bool
    seed: int = 0

    def __call__(self, path: str, rounding: float = 0.0) -> float:
        """The root mean square of ‖x_client − x_probe‖ / ‖x_probe‖ at ``path``, causes added in quadrature.

        An update of several steps sums x_s δ_sᵀ over inputs x_s that move. With the parameters half way, x_mid and the
        direction of the movement span all of them up to the curvature of the path: the square of the relative movement,
        here between the model's own parameters and those half way, times four for the whole way. It is measured where the
        first attention reads; behind it inputs move more, and the space that the steps recorded holds more of it.

        Args:
            rounding: relative noise that the gradients show; of the size of a short format's, the model may have run in that.
        """
        parts = []
        if self.midway:
            first = self.subject.anatomy.first_maps()[0].module
            parts.append(4.0 * _apart(self._inputs(first, self.midway), self._inputs(first)) ** 2)
        dtype = self.dtype or next((format for size, format in _ROUNDED if rounding >= size), None)
        if dtype is not None:
            short = {name: value.to(dtype) for name, value in self.subject.parameters().items()}
            parts.append(_apart(self._inputs(path, short), self._inputs(path)))
        if self.dropout:
            with _training(self.subject, self.seed):
                lossy = self._inputs(path)
            parts.append(_apart(lossy, self._inputs(path)))
        return math.hypot(*parts)

    def _inputs(self, path: str, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        rng = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(self.subject.anatomy.vocab_size, (_ROWS, _LENGTH), generator=rng)
        device = next(self.subject.module.parameters()).device
        return linear_inputs(self.subject, (path,), ids.to(device), parameters=parameters)[path].double()


def format_of(update: Update) -> torch.dtype | None:
    """The short number format in which all entries of an update are exact, so that the model may have run in it; or None."""
    bits = 0
    # Small tensors first: an embedding's gradient, nearly all zeros, is exact in any format for a long while.
    for tensor in sorted(update.values(), key=Tensor.numel):
        bits = max(bits, significant_bits(tensor))
        if bits > max(_FORMATS):
            return None
    return _FORMATS.get(bits)


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@contextmanager
def _training(subject: Subject, seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        subject.module.train()
        try:
            yield
        finally:
            subject.module.eval()
