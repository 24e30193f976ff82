"""A plan names the weights and the data it speaks of by their content, never by where they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, types, shapes and values, in the given order."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        # bfloat16 has no NumPy type; bytes are bytes. Hashed where they lie: an embedding table may hold gigabytes.
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
