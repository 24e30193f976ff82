"""What a layer read and what error signal came back, for one batch, in any precision: the two factors of its weight
gradient. Needs one forward and one backward pass and forms no weight gradient. Must not know attacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradleak.core.batch import Batch
from gradleak.models import Subject


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """Factors of a linear map's weight gradient: ``G = inputsᵀ @ errors`` over all places.

    Attributes:
        inputs: ``[batch seq in]``.
        errors: derivative of the mean loss with respect to the map's output, ``[batch seq out]``.
    """

    inputs: Float[Tensor, "batch seq features"]
    errors: Float[Tensor, "batch seq outputs"]


def flow_through(
    subject: Subject, batch: Batch, paths: Sequence[str], *, dtype: torch.dtype = torch.float32
) -> dict[str, Flow]:
    """The factors at every module of ``paths`` for one batch of text.

    Args:
        dtype: number format of the pass; the parameters are converted for it and the model is left as it is.
    """
    batch_size, seq = batch.inputs.shape
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook_for(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            read = args[0] if args else next(iter(kwargs.values()))
            # Parameters are constants here: the first map that is listened to is where the graph begins.
            attached = output if output.requires_grad else output.detach().requires_grad_()
            seen[path] = (read.detach(), attached)
            return attached

        return hook

    module = subject.module
    handles = [
        module.get_submodule(path).register_forward_hook(hook_for(path), with_kwargs=True)
        for path in dict.fromkeys(paths)
    ]
    constants = {name: p.detach().to(dtype) for name, p in subject.parameters().items()}
    try:
        with torch.enable_grad():
            logits = subject.logits(constants, inputs=batch.inputs, mask=batch.mask)
            targets = subject.loss.targets(batch.labels, subject.classes).to(dtype)
            loss = subject.loss.per_group(logits, targets).sum()
    finally:
        for handle in handles:
            handle.remove()
    errors = torch.autograd.grad(
        loss, [written for _, written in seen.values()], allow_unused=True, materialize_grads=True
    )
    return {
        path: Flow(inputs=read.reshape(batch_size, seq, -1), errors=error.reshape(batch_size, seq, -1))
        for (path, (read, _)), error in zip(seen.items(), errors, strict=True)
    }
