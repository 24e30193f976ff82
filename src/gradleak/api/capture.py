"""What a client is about to send is saved with what is known about it. Must not import torch before it is called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gradleak.api._methods import chain_text

if TYPE_CHECKING:
    from torch import Tensor

    from gradleak.api._methods import Defense


def capture(
    update: Mapping[str, Tensor],
    path: str | Path,
    *,
    model: str | None = None,
    loss: str | None = None,
    classes: int | None = None,
    batch_size: int | None = None,
    seq_len: int | None = None,
    framed: bool | None = None,
    share: str | None = None,
    defenses: Defense | None = None,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
) -> None:
    """Saves an update, parameter name → gradient or delta, with what is known about it, for ``gradleak attack``.

    Everything left out is unknown to the adversary; attacks that need it say so.

    Args:
        update: what is shared, by the names of the model's parameters.
        path: folder to write: tensors as safetensors and a JSON manifest.
        model: folder, hub id or name of the model that was trained.
        loss: ``"classification"``, ``"causal-lm"`` or ``"masked-lm"``.
        classes: of a classification head.
        batch_size, seq_len: records of the batch, and tokens of the padded batch.
        framed: whether the records are texts as the model's tokenizer frames and pads them.
        share: how the client trained, such as ``"gradient"``; without it no attack can replay the client.
        defenses: the chain in use, as text, a ``gradleak.Stage`` or a sequence of stages; ``"none"`` if there is none.
        mask: which tokens of the batch are real, ``[batch seq]``.
        labels: of the batch, where the adversary is to know them.

    Raises:
        DataError: if the update is empty or not finite.
        SpecError, UnknownNameError: for a spec that cannot be read.
    """
    from gradleak.core.loss import find_loss
    from gradleak.harness.captured.files import Manifest, write_capture
    from gradleak.harness.request.plan import Call
    from gradleak.harness.request.prepare import read_chain
    from gradleak.harness.request.shares import parse_share

    training = None if share is None else parse_share(share)
    stages: list[Call] | None = None
    if defenses is not None:
        text = chain_text(defenses)
        stages = [] if text.strip() == "none" else list(read_chain(text))
    manifest = Manifest(
        model=model,
        loss=None if loss is None else find_loss(loss).name,
        classes=classes,
        batch_size=batch_size,
        seq_len=seq_len,
        framed=framed,
        mask=None if mask is None else mask.bool().tolist(),
        labels=None if labels is None else labels.tolist(),
        stages=stages,
        training=None if training is None else {f: getattr(training, f) for f in type(training).__dataclass_fields__},
    )
    write_capture(update, path, manifest)
