"""The quick tier: a handful of scripts at their smallest, in one process, each recorded. It shows that they still run and record.

Most of its seconds go into loading the libraries. Its numbers come from too few draws to be read.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from pathlib import Path

import torch

SMALLEST = (
    ("privacy.acceptance", "--parts", "releases"),
    ("privacy.claim_audit", "--parts", "ceilings"),
    ("span.theory", "--parts", "roundings", "null"),
    ("span.model_types", "--losses", "causal-lm", "--types", "gpt2,llama", "--out", "{cells}"),
    ("defenses.small_tests", "--seeds", "1"),
    (
        *("matching.adaptive", "--defenses", "clip(max_norm=1.0)", "--attacks", "token_support"),
        *("--repeats", "2", "--out", "{cells}"),
    ),
)
"""Scripts and their arguments; {cells} is a new folder for what a script would go on with."""


def quick(results: Path) -> None:
    """Runs them, writes pages and data under ``results``, and says on standard error what each took."""
    torch.set_num_threads(1)
    begun = time.perf_counter()
    for script, *arguments in SMALLEST:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as cells:
            words = [word.format(cells=cells) for word in arguments]
            importlib.import_module(f"benchmarks.{script}").main(["--results", str(results), *words])
        print(f"{script}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    print(f"all: {time.perf_counter() - begun:.1f} s; results in {results}", file=sys.stderr)
