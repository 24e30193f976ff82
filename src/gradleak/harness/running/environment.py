"""A record says what computed it, so that a number can be traced to versions, a commit and a machine type."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gradleak.core.version import VERSION
from gradleak.models import Subject
from gradleak.models.running.attention import attention_kernel


def environment_of(subject: Subject | None = None) -> dict[str, Any]:
    """Versions, commit, device and number format, as plain data. Holds nothing that names a person or a path."""
    plain: dict[str, Any] = {
        "gradleak": VERSION,
        **_checkout(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": installed_version("transformers"),
        "platform": f"{platform.system()}-{platform.machine()}",
        "threads": torch.get_num_threads(),
    }
    if subject is not None:
        first = next(subject.module.parameters())
        plain |= {
            "device": first.device.type,
            "dtype": str(first.dtype).removeprefix("torch."),
            "attention": attention_kernel(subject.module),
            **({} if subject.extent is None else {"loaded": subject.loaded}),
        }
    return plain


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _checkout() -> dict[str, Any]:
    """Commit and dirtiness if gradleak runs from a checkout of its own; both None from an installed wheel."""
    root = Path(__file__).resolve().parents[4]
    unknown: dict[str, Any] = {"commit": None, "dirty": None}
    if not (root / ".git").exists():
        return unknown
    commit, status = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
    return unknown if commit is None or status is None else {"commit": commit, "dirty": bool(status)}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
