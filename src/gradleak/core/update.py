"""What is shared, a parameter *name* → tensor mapping. Positions never mean anything here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from gradleak.core.errors import DataError


def all_finite(tensor: Tensor) -> bool:
    """True if no entry is NaN or infinite. NaN wins in a minimum and a maximum, so no mask of the tensor's size is made."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(torch.stack(tensor.detach().aminmax())).all())


class Update(Mapping[str, Tensor]):
    """An immutable mapping from parameter name to a detached tensor: a gradient or a model delta.

    Raises:
        DataError: if it is empty or holds NaN or infinite entries.
    """

    __slots__ = ("_tensors",)

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        if not tensors:
            raise DataError("The update is empty: no parameter was shared. Check which parameters are trainable.")
        broken = [name for name, tensor in tensors.items() if not all_finite(tensor)]
        if broken:
            raise DataError(
                f"The update of {broken[0]!r} holds NaN or infinite entries (and {len(broken) - 1} more tensors do). "
                "Check the model's weights and the loss before auditing."
            )
        self._tensors = MappingProxyType({name: tensor.detach() for name, tensor in tensors.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def map(self, function: Callable[[str, Tensor], Tensor]) -> Update:
        """A new update with ``function(name, tensor)`` in the place of each tensor."""
        return Update({name: function(name, tensor) for name, tensor in self.items()})

    def norm(self) -> float:
        """Euclidean norm over all entries of all tensors, accumulated in float64."""
        return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in self.values()))

    def entries(self) -> int:
        """Number of scalars shared."""
        return sum(tensor.numel() for tensor in self.values())
