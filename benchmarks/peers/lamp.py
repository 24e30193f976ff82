"""TAG as the public code of LAMP (Balunović et al., NeurIPS 2022) runs it as a baseline. Imports nothing of gradleak.

That code runs on old releases only, so it gets an environment of its own, and a checkout beside this repository:

    git clone https://github.com/eth-sri/lamp
    python -m venv peer-venv
    peer-venv/bin/pip install torch==2.13.0 transformers==4.45.1 numpy==1.26.4 scipy tqdm safetensors
    peer-venv/bin/python benchmarks/peers/lamp.py CHECKOUT MODEL PROBLEM --iterations 1000

MODEL is the folder of a BERT classifier; PROBLEM is a JSON file of ``ids`` (with the special tokens) and ``label``.
The peer's own ``reconstruct`` does the work, with
the settings of its tag.sh. What its top level wants and this path never uses (data sets, metric, the language model whose
weight in the objective is zero here) is replaced at run time by something empty.

Prints JSON: the ids it proposes, CPU and wall seconds of ``reconstruct`` alone, the norm of its gradients, versions.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import time
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, BatchEncoding

SETTINGS = ["--baseline", "--loss", "tag", "--lr", "0.1", "--lr_decay", "1", "--tag_factor", "0.01"]
"""Of its tag.sh, which runs 2,500 steps."""


class SilentLanguageModel(torch.nn.Module):
    """In the place of the prior: its loss is printed now and then, and weighs nothing in the baselines."""

    device = torch.device("cpu")

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return torch.nn.Embedding(1, 1)

    def forward(self, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(loss=torch.zeros(()))


class FixedTokenizer:
    """Gives the ids of the problem, whatever the text."""

    pad_token_id, vocab_size, model_max_length = 0, 30_522, 512

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def __call__(self, *_: Any, **__: Any) -> BatchEncoding:
        return BatchEncoding({"input_ids": torch.tensor([self.ids])})

    def batch_decode(self, ids: torch.Tensor) -> str:
        return str(ids.tolist())


class NoMetric:
    """Pairs the one prediction with the one reference."""

    def compute(self, **_: Any) -> dict[str, SimpleNamespace]:
        return {"rouge1": SimpleNamespace(mid=SimpleNamespace(fmeasure=0.0))}


def import_peer(checkout: Path, iterations: int, seed: int) -> ModuleType:
    """The peer's ``attack`` module, which parses the command line and seeds its generators when it is imported."""
    empty = ModuleType("datasets")
    empty.__spec__ = ModuleSpec("datasets", None)
    empty.__dict__.update(load_metric=None, load_dataset=None)
    sys.modules["datasets"] = empty
    sys.path.insert(0, str(checkout))
    unused = ["--dataset", "cola", "--split", "test", "--n_inputs", "1", "--device", "cpu"]
    sys.argv = ["attack.py", *SETTINGS, *unused, "--n_steps", str(iterations), "--rng_seed", str(seed)]
    peer = importlib.import_module("attack")
    peer.__dict__["remove_padding"] = lambda _, ids: ids.tolist()
    return peer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("problem", type=Path)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=101, help="101 is the peer's own default")
    arguments = parser.parse_args()
    problem = json.loads(arguments.problem.read_text(encoding="utf-8"))
    peer = import_peer(arguments.checkout, arguments.iterations, arguments.seed)
    model = AutoModelForSequenceClassification.from_pretrained(arguments.model, attn_implementation="eager").eval()
    label = torch.tensor([problem["label"]])
    embeddings = model.get_input_embeddings()(torch.tensor([problem["ids"]]))
    gradients = [g for g in peer.compute_grads(model, embeddings, label) if g is not None]
    norm = float(torch.stack([g.norm() for g in gradients]).norm())
    wall, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        found, _ = peer.reconstruct(
            peer.args,
            torch.device("cpu"),
            ([""], label),
            NoMetric(),
            FixedTokenizer(problem["ids"]),
            SilentLanguageModel(),
            model,
        )
    print(
        json.dumps(
            {
                "ids": found[0],
                "cpu": time.process_time() - cpu,
                "wall": time.perf_counter() - wall,
                "norm": norm,
                "threads": torch.get_num_threads(),
                "versions": {name: version(name) for name in ("torch", "transformers")},
            }
        )
    )


if __name__ == "__main__":
    main()
