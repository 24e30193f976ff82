"""What a defense costs in memory is a number of bytes, not a feeling. Must not know what is measured."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode


class PeakMemory(TorchDispatchMode):
    """Largest number of bytes that tensors made inside the block held at one moment.

    Every storage counts once, from the operation that makes it until its last tensor is gone. Tensors that were there before
    do not count, nor does what an operation allocates and frees inside itself.

        with PeakMemory() as memory:
            ...
        memory.peak
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, int] = {}
        self._total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_key(each) for each in _pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        found = func(*args, **(kwargs or {}))
        for each in _pytree.tree_leaves(found):
            if isinstance(each, Tensor) and _key(each) not in before:
                self._count(each.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live:
            return
        self._live[key] = storage.nbytes()
        self._total += storage.nbytes()
        self.peak = max(self.peak, self._total)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._total -= self._live.pop(key, 0)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
