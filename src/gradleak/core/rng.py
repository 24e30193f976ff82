"""Randomness is explicit, and a cell's draws depend on its own name, not on what ran before it."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *labels: object) -> torch.Generator:
    """A CPU generator whose stream is a function of ``seed`` and ``labels`` only (SHA-256 of their text)."""
    text = "/".join(str(part) for part in (seed, *labels))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
