"""A folder that peft wrote holds an adapter and the name of its base. Together they are the model that was trained. Must not know attacks or
how a base is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from gradleak.core.errors import ModelError, UnsafeFileError
from gradleak.models.reading.anatomy_reader import read_anatomy
from gradleak.models.silence import one_line, quiet
from gradleak.models.subject import Subject

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HEADS = ("classifier.out_proj.weight", "classifier.weight", "score.weight")
_LOSSES = {"SEQ_CLS": "classification", "CAUSAL_LM": "causal-lm"}


def is_adapter_folder(name: str) -> bool:
    """Whether a local folder holds an adapter without its base."""
    folder = Path(name)
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def load_adapter_folder(
    name: str, load_base: Callable[[str, str | None, int | None], Subject], *, loss: str | None
) -> Subject:
    """The base with the adapter in it, which alone is trained.

    Args:
        load_base: from name, loss and number of classes to the base.

    Raises:
        ModelError: if the base is not named or missing, or the adapter does not fit it, or peft is not installed.
        UnsafeFileError: for a pickled adapter.
    """
    folder = Path(name)
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        problem = "is pickled (adapter_model.bin); opening it can run any code" if pickled else f"lacks {WEIGHTS}"
        raise (UnsafeFileError if pickled else ModelError)(
            f"The adapter in {name!r} {problem}. Save it with save_pretrained(..., safe_serialization=True)."
        )
    config = _read_config(folder)
    base = _base_of(folder, config)
    subject = load_base(base, loss or _LOSSES.get(str(config.get("task_type"))), _classes(folder))
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError(
            "An adapter folder needs the peft extra, which is not installed: pip install 'gradleak[peft]'."
        ) from error
    try:
        with quiet():
            module: Any = PeftModel.from_pretrained(subject.module, str(folder), is_trainable=True)
    except (ValueError, TypeError, RuntimeError, KeyError, OSError) as error:
        raise ModelError(f"The adapter in {name!r} does not fit its base {base!r}: {one_line(error)}") from error
    if any(getattr(c, "is_prompt_learning", False) for c in module.peft_config.values()):
        raise ModelError("Learned prompts are not supported; gradleak audits adapters inside the module, such as LoRA.")
    inner: nn.Module = module.get_base_model()
    inner.eval()
    with quiet():
        return replace(subject, name=name, module=inner, anatomy=read_anatomy(inner))


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        plain = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{folder / CONFIG} cannot be read: {error}. Save the adapter again.") from error
    if not isinstance(plain, dict):
        raise ModelError(f"{folder / CONFIG} holds no JSON object. Save the adapter again.")
    return plain


def _base_of(folder: Path, config: dict[str, Any]) -> str:
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ModelError(
            f"{folder / CONFIG} does not name the base of the adapter. Write the path or hub id of the base into "
            "base_model_name_or_path, or pass the PeftModel in Python."
        )
    beside = folder / named
    return str(beside) if beside.is_dir() else named


def _classes(folder: Path) -> int | None:
    """Classes of a head that was saved with the adapter; None if there is none."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as stored:
            heads = [name for name in stored.keys() if name.endswith(_HEADS)]  # noqa: SIM118
            shapes = [stored.get_slice(name).get_shape() for name in heads]
    except SafetensorError as error:
        raise ModelError(f"The adapter in {str(folder)!r} cannot be read: {error}. Save it again.") from error
    return next((max(2, int(shape[0])) for shape in shapes if len(shape) == 2), None)
