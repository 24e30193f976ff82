"""Where a number comes from: the commit of the checkout, the machine and the versions, as plain data.

Must not know what is measured.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import gradleak

ROOT = Path(__file__).resolve().parents[2]
"""The checkout that holds the benchmarks."""
UNKNOWN = "unknown"
_SHORT = 10
_PACKAGES = ("torch", "transformers", "numpy", "scipy", "dp-accounting")
_CAN_CHANGE_A_NUMBER = (
    "src",
    "benchmarks",
    "pyproject.toml",
    ":(exclude)benchmarks/results",
    ":(exclude)benchmarks/README.md",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """The commit that the checkout stood at, and whether code that can change a number differed from it.

    Attributes:
        name: the first hexadecimal digits, or "unknown" without a checkout.
        dirty: True also where gradleak was imported from elsewhere: then the commit does not say what ran.
    """

    name: str
    dirty: bool

    def __str__(self) -> str:
        return self.name + (" with uncommitted changes" if self.dirty else "")


def commit() -> Commit:
    """The present commit. Results and charts that were written before do not make it dirty, other code does."""
    name = git("rev-parse", f"--short={_SHORT}", "HEAD")
    status = git("status", "--porcelain", "--", *_CAN_CHANGE_A_NUMBER)
    if name is None or status is None:
        return Commit(name=UNKNOWN, dirty=True)
    elsewhere = ROOT not in Path(gradleak.__file__ or "").resolve().parents
    return Commit(name=name, dirty=bool(status) or elsewhere)


def commit_of(environment: Mapping[str, Any]) -> str | None:
    """The commit that a record of an audit names, as ``Commit`` is printed; None where it names none."""
    name = environment.get("commit")
    return None if name is None else str(Commit(name=str(name)[:_SHORT], dirty=bool(environment.get("dirty"))))


def git(*arguments: str) -> str | None:
    """What git prints in this checkout; None where there is no git, or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine() -> dict[str, Any]:
    """Processor, its cores, the threads of torch as they are set now, and its accelerator if there is one."""
    facts: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts


def processor() -> str:
    """The name that the processor gives itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of Python, gradleak and what computes its numbers."""
    numbers = {"python": platform.python_version(), "gradleak": gradleak.__version__}
    for package in _PACKAGES:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            continue
    return numbers
