"""Why: many gradients or losses in one pass are cheaper than one after the other, but a model that branches on its data
(experts, some encoders with padding) cannot be vectorized. Asked in one place. Must not know what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def vectorized(function: Callable[..., Any], *arguments: Any, in_dims: Any = 0) -> Any | None:
    """``torch.func.vmap`` of ``function`` on ``arguments``; None if it branches on data, and has to be called one by one."""
    try:
        return torch.func.vmap(function, in_dims=in_dims, randomness="different")(*arguments)
    except RuntimeError as error:
        # torch has no type of its own for this; its message names the transform.
        if "vmap" not in str(error):
            raise
        return None
