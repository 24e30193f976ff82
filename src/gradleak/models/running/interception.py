"""Queries, keys and values as attention itself receives them, after rotation, normalization and whatever else a
model does to them, so that attention can be computed for many sequences that share their beginnings. The library hands
them to a named attention function; here is one that keeps them. Must not know what they are used for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from gradleak.models.running.attention import attention_kernel
from gradleak.models.silence import quiet

_NAME = "gradleak_intercepted"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionCall:
    """The arguments of one attention function, as the library passes them.

    Attributes:
        bias: what is added to the scores (masks included), or None.
        scale: factor of the scores; soft_cap: c of c·tanh(score/c), or None.
    """

    query: Float[Tensor, "batch heads seq head_dim"]
    key: Float[Tensor, "batch kv_heads seq head_dim"]
    value: Float[Tensor, "batch kv_heads seq head_dim"]
    bias: Float[Tensor, "batch any seq seq"] | None
    scale: float
    soft_cap: float | None


_listeners: list[Callable[[AttentionCall], None]] = []


def _intercept(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    scale = settings.get("scaling")
    call = AttentionCall(
        query=query.detach(),
        key=key.detach(),
        value=value.detach(),
        bias=attention_mask,
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        soft_cap=settings.get("softcap"),
    )
    for listener in _listeners:
        listener(call)
    raise RuntimeError("The intercepted attention has no result: its listener ends the forward pass.")


AttentionInterface.register(_NAME, _intercept)
AttentionMaskInterface.register(_NAME, eager_mask)


@contextmanager
def intercepted(module: nn.Module, listener: Callable[[AttentionCall], None]) -> Iterator[None]:
    """Inside, the first attention of a forward pass calls ``listener``, which must end the pass by an exception.

    A module whose attention does not go through the library's interface runs as it always does.
    """
    kernel = attention_kernel(module)
    switch: Any = getattr(module, "set_attn_implementation", None)
    if kernel is None or switch is None:
        yield
        return
    # Modules without the library's interface make it advise, twice, and run as they always do.
    with quiet():
        switch(_NAME)
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
        with quiet():
            switch(kernel)
