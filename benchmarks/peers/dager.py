"""The public code of DAGER (Petrov et al., NeurIPS 2024) on a captured observation of ours. Imports nothing of gradleak.

That code runs on old releases only, so it gets an environment of its own, and a checkout beside this repository:

    git clone https://github.com/insait-institute/dager-gradient-inversion
    python -m venv peer-venv
    peer-venv/bin/pip install torch==2.13.0 transformers==4.45.1 numpy==1.26.4 scipy tqdm safetensors
    peer-venv/bin/python benchmarks/peers/dager.py CHECKOUT OBSERVATION WEIGHTS

OBSERVATION is a folder that gradleak.capture wrote for a sequence classifier of the shape of GPT-2 small; WEIGHTS is the
model's folder. The peer's own functions do the work: ``get_matrices_expansions``, ``filter_l1``, ``filter_decoder``, with
the settings of its scripts/gpt2.sh and the defaults of its parser. What its top level wants and this path never uses (a
hub token, its data sets, its metric, its tokenizer, LoRA) is replaced at run time by something empty.

Prints JSON: proposals with their scores, wall and CPU seconds of the attack alone, settings, versions, threads. Time
starts when the model and the update are in memory. Not timed and not run, all in the peer's favor: its diagnostics
against the truth, its console output, and the choice of the best proposals at its end, in whose place all of them count.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar

import torch
from safetensors import safe_open

T = TypeVar("T")

HEAD = "score.weight"
"""The peer draws the classifier's head anew when it loads a model. No step of its attack reads the head."""


def rank_tolerance(rule: str, batch_size: int) -> list[str]:
    """``auto`` is the default of the peer's parser (numpy's own tolerance), ``table`` the rule of thumb of its README."""
    if rule == "auto":
        return []
    return ["--rank_tol", "1e-7" if batch_size <= 2 else "1e-8" if batch_size <= 16 else "1e-9"]


def empty_module(name: str, **members: object) -> None:
    """Stands in for a package that the peer imports and, on this path, never calls."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(members)
    sys.modules[name] = module


def import_peer(checkout: Path, settings: list[str]) -> ModuleType:
    """The peer's ``attack`` module, which parses the command line when it is imported."""
    os.environ.setdefault("HF_TOKEN", "unused")
    empty_module("datasets", load_metric=None, load_dataset=None)
    empty_module("peft")
    sys.path.insert(0, str(checkout))
    sys.argv = ["attack.py", *settings]
    models = importlib.import_module("utils.models")
    tokenizer = SimpleNamespace(eos_token="", add_special_tokens=lambda _: None)
    models.__dict__["AutoTokenizer"] = SimpleNamespace(from_pretrained=lambda *_, **__: tokenizer)
    return importlib.import_module("attack")


def check_weights(module: torch.nn.Module, weights: Path) -> None:
    """Releases differ in how they name and store weights, and a missing one would be drawn at random."""
    with safe_open(weights / "model.safetensors", framework="pt") as stored:
        for name, parameter in module.named_parameters():
            if name != HEAD and not torch.equal(parameter, stored.get_tensor(name)):
                raise SystemExit(f"{name} was loaded with other values than {weights} holds.")


def read_gradients(module: torch.nn.Module, observation: Path) -> list[torch.Tensor]:
    """The update in the order of ``module.parameters()``, in which the peer finds its layers by number."""
    with safe_open(observation / "update.safetensors", framework="pt") as stored:
        gradients = {name: stored.get_tensor(name) for name, _ in module.named_parameters()}
    for name, parameter in module.named_parameters():
        if gradients[name].shape != parameter.shape:
            raise SystemExit(f"The update of {name} has shape {tuple(gradients[name].shape)}, not that of the model.")
    return list(gradients.values())


class Stopwatch:
    """Wall and CPU seconds (of all threads) per step."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, float]] = {}

    def run(self, step: str, function: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        self.steps[step] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        return result

    def total(self) -> dict[str, float]:
        return {kind: sum(step[kind] for step in self.steps.values()) for kind in ("wall", "cpu")}


def attack(peer: ModuleType, wrapper: Any, gradients: list[torch.Tensor], watch: Stopwatch) -> list[dict[str, Any]]:
    """Every sentence that the peer proposes, near misses only where it has fewer sentences than records, as it does."""
    args = peer.args
    with torch.no_grad():
        _, bases = watch.run("spans", lambda: wrapper.get_matrices_expansions(gradients, B=None, tol=args.rank_tol))
        _, candidates, _, _ = watch.run("tokens", lambda: peer.filter_l1(args, wrapper, bases))
        if not candidates:
            return []
        found = watch.run(
            "sentences", lambda: peer.filter_decoder(args, wrapper, bases, candidates, max_ids=args.max_ids)
        )
    sentences, scores, near, near_scores = found
    if len(sentences) < args.batch_size:
        sentences, scores = sentences + near, scores + near_scores
    pairs = zip(sentences, scores, strict=True)
    return [{"ids": ids, "accepted": score < args.l2_span_thresh} for ids, score in pairs if ids]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("observation", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--rank-tol", choices=["auto", "table"], default="auto")
    asked = parser.parse_args()
    batch_size = json.loads((asked.observation / "observation.json").read_text(encoding="utf-8"))["batch_size"]
    settings = [
        *("--dataset", "cola", "--split", "val", "--n_inputs", "1", "--task", "seq_class", "--model_path", "gpt2"),
        *("--l1_filter", "all", "--l2_filter", "non-overlap", "--batch_size", str(batch_size), "--device", "cpu"),
        *("--finetuned_path", str(asked.weights.resolve())),
        *rank_tolerance(asked.rank_tol, batch_size),
    ]
    watch = Stopwatch()
    with silence():
        peer = import_peer(asked.checkout, settings)
        wrapper = peer.ModelWrapper(peer.args)
        check_weights(wrapper.model, asked.weights)
        proposals = attack(peer, wrapper, read_gradients(wrapper.model, asked.observation), watch)
    kept = ("l1_span_thresh", "l2_span_thresh", "rank_tol", "l1_filter", "l2_filter", "parallel", "attn_implementation")
    commit = subprocess.run(
        ["git", "-C", asked.checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    report = {
        "proposals": proposals,
        "seconds": watch.total(),
        "steps": watch.steps,
        "settings": {name: getattr(peer.args, name) for name in kept},
        "commit": commit.stdout.strip(),
        "versions": {"torch": torch.__version__, **{name: version(name) for name in ("transformers", "numpy")}},
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
