"""Updates as real training loops leave them, attacked as they are: kind × model × what is read from it.

    python -m benchmarks.captured.kinds --measure after.json                # with the gradleak that is installed
    python -m benchmarks.captured.kinds --table before.json after.json      # the two beside each other

Every update is made by torch and transformers alone: autocast, a loss scale, accumulation, ``torch.optim``, ``transformers.Trainer``, wrappers
of ``torch.compile`` and data parallelism, peft, averages in numpy. The attack is ``span`` on the bare tensors, told nothing but the model, with
60 seconds. A case counts records that are recovered exactly; of a causal language model without the last token, which has no loss.
Seeds 0 to 4 were looked at while the readers were written; seeds 5 to 9 were set aside until they were finished.
"""

from __future__ import annotations

import inspect
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from faker import Faker
from safetensors.torch import save_file
from torch import Tensor, nn

import gradleak
from benchmarks.common import run
from gradleak.core.errors import GradleakError
from gradleak.models import Subject, load_subject

BUDGET_SECONDS = 60.0
MODELS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "minilm": ("minilm", {}),
    "bert 2×128": (
        "random:bert",
        {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256},
    ),
    "gpt2 2×128": ("random:gpt2", {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}),
}
Update = dict[str, Tensor]


class Case:
    """A model and a batch of texts, with the loops that make updates of them."""

    def __init__(self, model: str, seed: int, records: int) -> None:
        name, settings = MODELS[model]
        self.subject: Subject = load_subject(name, settings=settings, seed=seed)
        fake = Faker()
        fake.seed_instance(100 + seed)
        texts = [fake.sentence(nb_words=6 + seed % 4).lower().rstrip(".") for _ in range(records)]
        assert self.subject.tokenizer is not None
        self.ids, self.mask = self.subject.tokenizer.encode(texts, 24)
        self.labels = torch.randint(self.subject.classes, (records,), generator=torch.Generator().manual_seed(seed))

    @property
    def module(self) -> nn.Module:
        return self.subject.module

    def loss(self, module: nn.Module, rows: slice = slice(None)) -> Tensor:
        logits = module(input_ids=self.ids[rows], attention_mask=self.mask[rows].long()).logits
        return nn.functional.cross_entropy(logits.float(), self.labels[rows])

    def gradient(
        self, *, dtype: torch.dtype | None = None, scale: float = 1.0, rows: slice = slice(None), module: Any = None
    ) -> Update:
        module = self.module if module is None else module
        module.zero_grad()
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            loss = self.loss(module, rows)
        (loss * scale).backward()
        return {n: p.grad.detach().clone() for n, p in module.named_parameters() if p.grad is not None}

    def accumulated(self, dtype: torch.dtype | None) -> Update:
        parts = [self.gradient(dtype=dtype, rows=slice(i, i + 1)) for i in range(len(self.ids))]
        return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}  # type: ignore[misc]

    def averaged(self, dtype: torch.dtype | None) -> Update:
        half = len(self.ids) // 2
        one, two = self.gradient(dtype=dtype, rows=slice(0, half)), self.gradient(dtype=dtype, rows=slice(half, None))
        return {n: torch.from_numpy(np.mean([one[n].numpy(), two[n].numpy()], axis=0, dtype=np.float64)) for n in one}

    def step(self, lr: float, decay: float = 0.0) -> tuple[Update, Update]:
        """Weights before and after a step of SGD."""
        before = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        optimizer = torch.optim.SGD(self.module.parameters(), lr=lr, weight_decay=decay)
        optimizer.zero_grad()
        self.loss(self.module).backward()
        optimizer.step()
        after = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        self.module.load_state_dict(before, strict=False)
        return before, after

    def delta(self, lr: float, decay: float = 0.0) -> Update:
        before, after = self.step(lr, decay)
        return {name: after[name] - before[name] for name in before}

    def trunk(self) -> Update:
        prefix = f"{self.module.base_model_prefix}."
        return {n.removeprefix(prefix): t for n, t in self.gradient().items() if n.startswith(prefix)}

    def other_head(self) -> Update:
        """The trunk under a head that marks spans, as for question answering."""
        prefix = self.module.base_model_prefix
        trunk: Any = getattr(self.module, prefix)
        head = nn.Linear(trunk.config.hidden_size, 2)
        self.module.zero_grad()
        hidden = trunk(input_ids=self.ids, attention_mask=self.mask.long()).last_hidden_state
        starts, ends = head(hidden).unbind(-1)
        at = torch.ones(len(self.ids), dtype=torch.int64)
        (nn.functional.cross_entropy(starts, at) + nn.functional.cross_entropy(ends, at + 1)).backward()
        named = {f"{prefix}.{n}": p.grad.clone() for n, p in trunk.named_parameters() if p.grad is not None}
        return {**named, "qa_outputs.weight": head.weight.grad, "qa_outputs.bias": head.bias.grad}

    def trainer(self) -> Update:
        from transformers import Trainer, TrainerCallback, TrainingArguments

        kept: Update = {}

        class Keep(TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
                kept.update({n: p.grad.clone() for n, p in given["model"].named_parameters() if p.grad is not None})

        rows = [
            {"input_ids": i, "attention_mask": m.long(), "labels": y}
            for i, m, y in zip(self.ids, self.mask, self.labels, strict=True)
        ]
        with tempfile.TemporaryDirectory() as place:
            arguments = TrainingArguments(
                output_dir=place,
                max_steps=1,
                per_device_train_batch_size=len(rows),
                use_cpu=True,
                report_to=[],
                disable_tqdm=True,
                save_strategy="no",
                logging_strategy="no",
            )
            before = {name: value.clone() for name, value in self.module.state_dict().items()}
            no_dropout = [m for m in self.module.modules() if isinstance(m, nn.Dropout)]
            for layer in no_dropout:
                layer.p = 0.0
            Trainer(model=self.module, args=arguments, train_dataset=rows, callbacks=[Keep()]).train()
            self.module.load_state_dict(before)
            self.module.eval()
        return kept


def _scaled(dtype: torch.dtype, factor: float, scale: float = 1.0) -> Callable[[Case], Update]:
    return lambda case: {n: t * factor for n, t in case.gradient(dtype=dtype, scale=scale).items()}


def _prefixed(prefix: str) -> Callable[[Case], Update]:
    return lambda case: {prefix + n: t for n, t in case.gradient().items()}


_BF16, _FP16 = torch.bfloat16, torch.float16
KINDS: Mapping[str, tuple[int, Callable[[Case], Update]]] = {
    "float32": (2, lambda case: case.gradient()),
    "float32 stored as float64": (2, lambda case: {n: t.double() for n, t in case.gradient().items()}),
    "Trainer, clipped to norm 1": (2, Case.trainer),
    "autocast bf16": (2, _scaled(_BF16, 1.0)),
    "autocast bf16, divided by 3": (2, _scaled(_BF16, 1 / 3)),
    "autocast fp16, loss times 65536": (2, _scaled(_FP16, 1.0, 65536.0)),
    "the same, unscaled": (2, _scaled(_FP16, 1 / 65536, 65536.0)),
    "the same, times a learning rate": (2, _scaled(_FP16, 0.0137 / 65536, 65536.0)),
    "rounded to bf16, divided by 3, float64": (
        2,
        lambda c: {n: t.bfloat16().double() / 3 for n, t in c.gradient().items()},
    ),
    "3 accumulated micro-batches": (3, lambda case: case.accumulated(None)),
    "3 accumulated micro-batches, autocast bf16": (3, lambda case: case.accumulated(_BF16)),
    "numpy average of 2 clients": (4, lambda case: case.averaged(None)),
    "numpy average of 2 clients, autocast bf16": (4, lambda case: case.averaged(_BF16)),
    "weights after minus before, SGD lr .1": (2, lambda case: case.delta(0.1)),
    "weights after minus before, SGD lr .001": (2, lambda case: case.delta(1e-3)),
    "the same, lr .1 and weight decay .01": (2, lambda case: case.delta(0.1, 0.01)),
    "whole weights, reference given": (2, lambda case: case.step(0.1)[1]),
    "names behind module.": (2, _prefixed("module.")),
    "names behind _orig_mod.": (2, _prefixed("_orig_mod.")),
    "names behind _forward_module.module.": (2, _prefixed("_forward_module.module.")),
    "the bare trunk's names": (2, Case.trunk),
    "another head on the trunk": (2, Case.other_head),
}


def measure(models: list[str], seeds: list[int], kinds: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for model in models:
        for seed in seeds:
            for kind in kinds:
                rows.append(_attacked(model, seed, kind))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def _attacked(model: str, seed: int, kind: str) -> dict[str, Any]:
    records, make = KINDS[kind]
    case = Case(model, seed, records)
    before = {name: value.detach().clone().contiguous() for name, value in case.module.named_parameters()}
    update = make(case)
    row: dict[str, Any] = {"kind": kind, "model": model, "seed": seed, "records": records}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        save_file({n: t.contiguous() for n, t in update.items()}, Path(place) / "update.safetensors")
        save_file(before, Path(place) / "reference.safetensors")
        extra: dict[str, Any] = {}
        if "reference" in kind and "reference" in inspect.signature(gradleak.attack).parameters:
            extra["reference"] = Path(place) / "reference.safetensors"
        try:
            (found,) = gradleak.attack(
                Path(place) / "update.safetensors",
                case.module,
                tokenizer=case.subject.tokenizer,
                attacks="span",
                budget=BUDGET_SECONDS,
                **extra,
            )
        except GradleakError as error:
            return row | {"exact": 0, "status": "REFUSED", "message": str(error)[:200], "seconds": 0.0}
        except Exception as error:  # a raw error is a result of this table
            return row | {"exact": 0, "status": "TRACEBACK", "message": repr(error)[:200], "seconds": 0.0}
    proposal = found.reconstruction
    read = {tuple(r.tolist()) for r in proposal.records} if proposal.ordered else set()
    truth = [tuple(ids[keep].tolist()) for ids, keep in zip(case.ids, case.mask, strict=True)]
    return row | {
        "exact": sum(record in read for record in truth),
        "status": proposal.status.name,
        "message": proposal.message[:200],
        "seconds": round(time.perf_counter() - start, 1),
    }


def table(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str:
    """Kind × model: exact records over seeds, before → after; seeds looked at | seeds set aside."""
    models = list(dict.fromkeys(row["model"] for row in after))
    lines = ["| kind | " + " | ".join(models) + " |", "|---|" + "---|" * len(models)]
    for kind in dict.fromkeys(row["kind"] for row in after):
        cells = []
        for model in models:
            halves = []
            for half in (range(5), range(5, 10)):
                old, new = (_exact(rows, kind, model, half) for rows in (before, after))
                if new:
                    halves.append(f"{old or '–'} → {new}")
            cells.append(" · ".join(halves))
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    total = [sum(row["exact"] == row["records"] for row in rows) for rows in (before, after)]
    lines += ["", f"All records of a case exact: {total[0]} of {len(before)} before, {total[1]} of {len(after)} after."]
    raw = [sum(row["status"] == "TRACEBACK" for row in rows) for rows in (before, after)]
    return "\n".join([*lines, f"Raw errors: {raw[0]} before, {raw[1]} after."])


def _exact(rows: list[dict[str, Any]], kind: str, model: str, seeds: range) -> str:
    here = [r for r in rows if r["kind"] == kind and r["model"] == model and r["seed"] in seeds]
    return f"{sum(r['exact'] for r in here)}/{sum(r['records'] for r in here)}" if here else ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--measure", type=Path, metavar="FILE")
    parser.add_argument("--table", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seeds", default="0,5")
    parser.add_argument("--kinds", default="")
    asked = run.parse(parser, argv)
    if asked.measure is not None:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        kinds = [kind for kind in KINDS if any(part in kind for part in asked.kinds.split(";"))]
        rows = measure(asked.models.split(","), [int(seed) for seed in asked.seeds.split(",")], kinds)
        asked.measure.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if asked.table is not None:
        old, new = (json.loads(path.read_text(encoding="utf-8")) for path in asked.table)
        with run.record(__file__, asked, seeds=[int(seed) for seed in asked.seeds.split(",")]):
            print("# Updates of real training loops, before and after\n")
            print(table(old, new))


if __name__ == "__main__":
    main()
