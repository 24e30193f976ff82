"""Whether this installation can audit, before an audit is tried. Must not import torch before it is called."""

from __future__ import annotations

from typing import Any


def doctor(model: str | None = None) -> dict[str, Any]:
    """The state of this installation as plain data.

    Args:
        model: also load this model and estimate what auditing it takes.

    Returns:
        ``environment``, ``dependencies``, ``attention`` (whether gradients of gradients work, before and after the switch of the
        kernel), ``extras``, ``machine``, ``catalogue`` and, with a model, ``model``.

    Raises:
        ModelError, UnsafeFileError: if ``model`` is given and cannot be loaded.
    """
    from gradleak.harness.doctor import examine

    return examine(model)
