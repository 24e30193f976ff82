"""The first question about a file that somebody holds: what is it? Must not import torch before it is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gradleak.harness.captured.inspection import Inspection
    from gradleak.models import Subject


def inspect_update(
    update: str | Path | Mapping[str, Tensor],
    model: str | Path | nn.Module | Subject | None = None,
    *,
    reference: str | Path | Mapping[str, Tensor] | None = None,
    loss: str | None = None,
    settings: Mapping[str, object] | None = None,
    tokenizer: Any = None,
    seed: int = 0,
) -> Inspection:
    """Says what an update is: gradient, delta, whole weights or an adapter's; its number format, noise, scale and names.

    Args:
        update: a ``.safetensors`` file, a folder of one (a capture, shards, an adapter), or parameter name → tensor.
        model: what was trained; without it names and vocabulary are not looked at.
        reference: the weights that the round began with; they are taken off.
        loss: ``"classification"``, ``"causal-lm"`` or ``"masked-lm"``; the model's own if None.
        settings: of the configuration of a ``"random:TYPE"`` model.
        tokenizer: of a module.
        seed: of random weights.

    Raises:
        UsageError: with cause and remedy.
    """
    from gradleak.harness.captured import inspection

    return inspection.inspect_update(
        update, model, reference=reference, loss=loss, settings=settings, tokenizer=tokenizer, seed=seed
    )
