"""Why: many gradients or losses in one pass are cheaper than one after the other, but a model that branches on its data
(experts, some encoders with padding) or brings a backward of its own cannot be vectorized. Asked in one place. Must not know what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def vectorized(function: Callable[..., Any], *arguments: Any, in_dims: Any = 0) -> Any | None:
    """``torch.func.vmap`` of ``function`` on ``arguments``; None if that cannot be done, and it has to be called one by one."""
    try:
        return torch.func.vmap(function, in_dims=in_dims, randomness="different")(*arguments)
    except RuntimeError as error:
        # torch has no type of its own for this; its message names the transforms.
        if not any(word in str(error) for word in ("vmap", "functorch")):
            raise
        return None
