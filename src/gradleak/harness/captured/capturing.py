"""From a training loop to a file that ``gradleak attack`` reads: tensors as loops and libraries hand them over, and what is known about them,
checked before anything is written. Must not know attacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradleak.core.errors import DataError, UsageError
from gradleak.core.loss import find_loss
from gradleak.core.specs import parse_chain
from gradleak.harness.captured.files import Manifest, write_capture
from gradleak.harness.request.plan import Call
from gradleak.harness.request.prepare import read_chain
from gradleak.harness.request.shares import parse_share

Tensors = Mapping[str, Any]
"""Name → tensor, parameter, numpy array or nested list of numbers, on any device, dense or sparse; None where there is no gradient."""


def save_capture(
    update: Tensors,
    path: str | Path,
    *,
    model: str | None = None,
    loss: str | None = None,
    classes: int | None = None,
    batch_size: int | None = None,
    seq_len: int | None = None,
    framed: bool | None = None,
    share: str | None = None,
    defenses: str | None = None,
    mask: Any = None,
    labels: Any = None,
) -> None:
    """Saves an update, parameter name → gradient or delta, with what is known about it, for ``gradleak attack``.

    Everything left out is unknown to the adversary; attacks that need it say so.

    Args:
        update: see ``Tensors``; entries that are None, and tensors of whole numbers, are left out.
        framed: whether the records are texts as the model's tokenizer frames and pads them.
        share: how the client trained, such as ``"gradient"``; without it no attack can replay the client.
        defenses: the chain in use, ``"none"`` if there is none.
        mask: which tokens are real, ``[batch seq]``.
        labels: class ids ``[batch]``, or target ids ``[batch seq]``.

    Raises:
        DataError: if the update is empty or not finite.
        UsageError: naming every fact that cannot be.
        SpecError, UnknownNameError: for a spec that cannot be read.
    """
    training = None if share is None else parse_share(share)
    stages: list[Call] | None = None
    if defenses is not None:
        stages = [] if defenses.strip() == "none" else list(read_chain(defenses))
    numbers = {"batch_size": batch_size, "seq_len": seq_len, "classes": classes}
    known_mask, known_labels = _whole(mask, "mask"), _whole(labels, "labels")
    _check_facts(numbers, known_mask, known_labels)
    manifest = Manifest(
        model=model,
        loss=None if loss is None else find_loss(loss).name,
        classes=classes,
        batch_size=batch_size,
        seq_len=seq_len,
        framed=framed,
        mask=None if known_mask is None else known_mask.bool().tolist(),
        labels=None if known_labels is None else known_labels.tolist(),
        stages=stages,
        training=None if training is None else {f: getattr(training, f) for f in type(training).__dataclass_fields__},
        sgd_decay=None if share is None or training is None or training.optimizer != "sgd" else _decay_of(share),
    )
    write_capture(as_tensors(update), path, manifest)


def from_gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients that ``backward`` left in a module, by parameter name; call it before the optimizer clears them.

    Raises:
        DataError: if no parameter has one.
    """
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not gradients:
        raise DataError(
            "No parameter of the module has a gradient. Capture after backward() and before zero_grad(); under FSDP or DeepSpeed "
            "gather the gradients first."
        )
    return as_tensors(gradients)


def from_delta(before: Tensors | nn.Module, after: Tensors | nn.Module) -> dict[str, Tensor]:
    """After minus before, of what training changed.

    Args:
        before: weights by name, such as a state dict that was cloned when the round began.

    Raises:
        DataError: if nothing changed, as when ``before`` was not cloned, or a tensor is missing or has another shape.
    """
    start, end = (as_tensors(_state(side)) for side in (before, after))
    missing = sorted(start.keys() ^ end.keys())
    if missing:
        raise DataError(
            f"Before and after do not hold the same tensors: {missing[0]!r} is in one of them only (and {len(missing) - 1} more). "
            "Take both from the same module in the same way."
        )
    wrong = [name for name in start if start[name].shape != end[name].shape]
    if wrong:
        raise DataError(
            f"{wrong[0]!r} had shape {tuple(start[wrong[0]].shape)} before and has {tuple(end[wrong[0]].shape)} after."
        )
    changed = {name: end[name] - start[name] for name in end if not torch.equal(end[name], start[name])}
    if not changed:
        raise DataError(
            "Nothing changed between before and after. A state dict shares its memory with the module: clone it when the round "
            "begins, {name: value.clone() for name, value in model.state_dict().items()}."
        )
    return changed


def from_peft(model: nn.Module, before: Tensors) -> dict[str, Tensor]:
    """What training changed in the adapters of a peft model, by the names of peft's own state dict.

    Args:
        before: a cloned ``peft.get_peft_model_state_dict(model)`` of when the round began.

    Raises:
        DataError: as ``from_delta``.
        UsageError: if peft is not installed.
    """
    try:
        from peft import get_peft_model_state_dict
    except ImportError as error:
        raise UsageError("from_peft needs the peft extra: pip install 'gradleak[peft]'.") from error
    state: Any = get_peft_model_state_dict(model)
    return from_delta(before, state)


def as_tensors(update: Tensors) -> dict[str, Tensor]:
    """Dense tensors on the host that share no memory, from whatever was handed over.

    Raises:
        DataError: naming what cannot be read.
    """
    if not isinstance(update, Mapping):
        raise DataError(
            f"An update is parameter name → tensor, not a {type(update).__name__}: positions mean nothing. Give "
            "dict(model.named_parameters()) with gradients in the place of the parameters, or capture.from_gradients(model)."
        )
    tensors = {_name(name): _as_tensor(name, value) for name, value in update.items() if value is not None}
    kept = {name: t for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    if not kept:
        raise DataError(
            "The update is empty: it holds no tensor of floating numbers. Call backward() first, and capture before gradients are cleared."
        )
    return kept


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise DataError(f"Names of an update are those of parameters, not {name!r}.")
    return name


def _as_tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray):
        # A copy: arrays of other byte orders, negative strides or read-only memory are no tensors.
        if value.dtype.kind not in "fiub":
            raise DataError(f"{name!r} is an array of {value.dtype}, not of numbers.")
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), copy=True, order="C"))
    if not isinstance(value, Tensor):
        try:
            value = torch.as_tensor(value)
        except (ValueError, TypeError, RuntimeError) as error:
            raise DataError(f"{name!r} is a {type(value).__name__} that is no tensor: {error}.") from error
    if value.device.type == "meta":
        raise DataError(f"{name!r} is on the meta device and holds no numbers. Materialize the model first.")
    if value.is_complex():
        raise DataError(f"{name!r} holds complex numbers; gradients of transformers are real.")
    dense = value.detach().to_dense() if value.layout is not torch.strided else value.detach()
    return dense.to("cpu", copy=True).contiguous()


def _state(side: Tensors | nn.Module) -> Tensors:
    return side.state_dict() if isinstance(side, nn.Module) else side


def _whole(value: Any, name: str) -> Tensor | None:
    if value is None:
        return None
    try:
        tensor = torch.as_tensor(np.asarray(value) if isinstance(value, np.ndarray) else value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"The {name} cannot be read as numbers of one shape: {error}. Pad its rows to one length."
        ) from error
    if tensor.is_floating_point():
        raise DataError(f"The {name} must hold whole numbers, got {tensor.dtype}.")
    return tensor.cpu() if name == "mask" else tensor.cpu().long()


def _check_facts(numbers: Mapping[str, int | None], mask: Tensor | None, labels: Tensor | None) -> None:
    """Raises ``UsageError`` with every fact that cannot be."""
    wrong = [f"{name}={value} must be a whole number of at least 1" for name, value in numbers.items() if _bad(value)]
    size = numbers["batch_size"]
    if mask is not None and mask.ndim not in {1, 2}:
        wrong.append(f"the mask must have shape [batch seq], got {tuple(mask.shape)}")
    elif mask is not None and not _bad(size) and size is not None and len(mask) != size:
        wrong.append(f"the mask has {len(mask)} rows for batch_size={size}")
    if labels is not None and labels.ndim not in {1, 2}:
        wrong.append(f"the labels must have shape [batch] or [batch seq], got {tuple(labels.shape)}")
    elif labels is not None:
        wrong += _wrong_labels(labels, numbers)
    if wrong:
        raise UsageError(f"These facts cannot be: {'; '.join(wrong)}. Leave out what is not known.")


def _wrong_labels(labels: Tensor, numbers: Mapping[str, int | None]) -> list[str]:
    size, classes = numbers["batch_size"], numbers["classes"]
    wrong: list[str] = []
    if not _bad(size) and size is not None and len(labels) != size:
        wrong.append(f"there are {len(labels)} labels for batch_size={size}")
    if labels.ndim == 1 and labels.numel():
        if int(labels.min()) < 0:
            wrong.append(f"the label {int(labels.min())} is negative")
        if not _bad(classes) and classes is not None and int(labels.max()) >= classes:
            wrong.append(f"the label {int(labels.max())} is out of range for classes={classes}")
    return wrong


def _bad(value: Any) -> bool:
    return value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1)


def _decay_of(share: str) -> float | None:
    """Weight decay where it was written out: of SGD ``LocalTraining`` holds none."""
    value = parse_chain(share)[0].args.get("weight_decay")
    return float(value) if isinstance(value, (int, float)) and value else None
