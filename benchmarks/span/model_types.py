"""Every text type of the transformers library, built small with random weights: what `span` recovers from its gradient.

    python -m benchmarks.span.model_types --out runs/model_types           # about 15 minutes on one core; resumes
    python -m benchmarks.span.model_types --table runs/model_types         # prints the table again

Per type two batches of two records (12 and 6 to 12 random tokens), one seed each; hidden size 64, four heads, two layers (four
or eight where no softmax attention comes before), 2,000 tokens and few experts where the type lets them be set, all other sizes
its own. A type is *exact* if all four records come back, under a causal loss without their last tokens, which have no loss. It
has 60 CPU seconds and 10 GiB for everything, building included. Types that cannot be built from these settings, or that gradleak does not
read, are listed with the reason it gives.
"""

from __future__ import annotations

import argparse
import gc
import resource
import signal
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from benchmarks.common import run
from benchmarks.span.speed import score
from gradleak.attacks.span import Span
from gradleak.core.attack import Clock
from gradleak.core.batch import IGNORED, Batch
from gradleak.core.errors import GradleakError, ModelError
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

_CPU_SECONDS = 60.0
_MEMORY = 10 * 2**30
_SIZES: Mapping[str, object] = {"hidden_size": 64, "num_attention_heads": 4}
_SMALLER: Mapping[str, object] = {
    "vocab_size": 2000,
    "moe_intermediate_size": 64,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads"), 4),
    **dict.fromkeys(("n_group", "topk_group"), 1),
}
"""Set where a type has them: many experts and wide recurrent heads cost time and tell nothing here."""
_TYPES = {
    "causal-lm": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "classification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}


class OutOfTimeError(BaseException):
    """Not an ``Exception``: nothing between here and the clock may take it for one of its own."""


@contextmanager
def limited_to(seconds: float) -> Iterator[None]:
    """Raises inside after so many CPU seconds of this process."""

    def stop(*_: object) -> None:
        raise OutOfTimeError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def built(kind: str, loss: str) -> Subject:
    """Two layers, or as many as it takes to have a softmax attention among them."""
    for layers in (2, 4):
        try:
            return _sized(kind, loss, {**_SIZES, "num_hidden_layers": layers})
        except ModelError as error:
            if "no attention to read" not in str(error):
                raise
    return _sized(kind, loss, {**_SIZES, "num_hidden_layers": 8})


def _sized(kind: str, loss: str, sizes: dict[str, object]) -> Subject:
    known = CONFIG_MAPPING[kind]().to_dict() if kind in CONFIG_MAPPING else {}
    smaller = {key: value for key, value in _SMALLER.items() if isinstance(known.get(key), int)}
    return load_subject(f"random:{kind}", loss=loss, settings={**sizes, **smaller})  # type: ignore[arg-type]


def one_batch(subject: Subject, seed: int) -> Batch:
    rng = derive(seed, "model-types")
    mask = torch.arange(12) < torch.tensor([12, int(torch.randint(6, 13, (), generator=rng))]).unsqueeze(1)
    # Low ids are special in many types.
    ids = torch.randint(10, subject.anatomy.vocab_size, mask.shape, generator=rng).masked_fill(~mask, 0)
    labels = torch.tensor([0, 1]) if subject.loss.name == "classification" else ids.masked_fill(~mask, IGNORED)
    return Batch(inputs=ids, mask=mask, labels=labels)


def attacked(kind: str, loss: str) -> dict[str, Any]:
    subject = built(kind, loss)
    total: dict[str, Any] = {"direction": subject.anatomy.kind, "exact": 0, "records": 0, "wrong": 0, "bag_recall": 1.0}
    for seed in (0, 1):
        batch = one_batch(subject, seed)
        update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed, "update"))
        facts = {"subject": subject, "batch_size": batch.size, "seq_len": batch.inputs.shape[1]}
        start = time.process_time()
        observation = Observation(update=update, knowledge=Knowledge(facts=facts))
        found = Span()(observation, rng=derive(seed, "attack"), clock=Clock(_CPU_SECONDS))
        scores = score(found, batch, loss)
        for key in ("exact", "records", "wrong"):
            total[key] += scores[key]
        total["bag_recall"] = min(total["bag_recall"], scores["bag_recall"])
        total["cpu"] = max(total.get("cpu", 0.0), time.process_time() - start)
        total["message"] = found.message
    return total


def measured(kind: str, loss: str) -> dict[str, Any]:
    found: dict[str, Any] = {"type": kind, "loss": loss}
    try:
        with limited_to(_CPU_SECONDS):
            found |= attacked(kind, loss)
    except GradleakError as error:
        found["refused"] = str(error)
    except (OutOfTimeError, MemoryError):
        found["late"] = True
    except Exception as error:  # a fault of ours or of the library's: counted as such, not hidden
        out_of_memory = "allocate memory" in str(error)
        found |= {"late": True} if out_of_memory else {"fault": f"{type(error).__name__}: {error}"}
    return found


def outcome(result: Mapping[str, Any]) -> str:
    for word in ("refused", "late", "fault"):
        if word in result:
            return word
    return "exact" if result["exact"] == result["records"] and not result["wrong"] else "in part"


def table(results: Sequence[Mapping[str, Any]]) -> str:
    lines: list[str] = []
    for loss in _TYPES:
        mine = [r for r in results if r["loss"] == loss]
        if not mine:
            continue
        counts = {
            word: sum(outcome(r) == word for r in mine) for word in ("exact", "in part", "refused", "late", "fault")
        }
        lines += [f"\n## {loss}: {len(mine)} types\n", ", ".join(f"{word} {n}" for word, n in counts.items()) + ".\n"]
        exact = [r for r in mine if outcome(r) == "exact"]
        for direction in sorted({r["direction"] for r in exact}):
            names = [f"{r['type']} ({r['cpu']:.1f})" for r in exact if r["direction"] == direction]
            lines.append(f"Exact, {direction}s (CPU seconds of the slower batch): {', '.join(names)}.\n")
        rest = [_row(r) for r in mine if outcome(r) != "exact"]
        head = ["| type | outcome | records exact | wrong | bag recall | CPU s | what was said |", "|---" * 7 + "|"]
        lines += [*head, *rest] if rest else []
    return "\n".join(lines)


def _row(result: Mapping[str, Any]) -> str:
    said = (
        result.get("refused")
        or result.get("fault")
        or result.get("message")
        or f"more than {_CPU_SECONDS:.0f} CPU s or {_MEMORY / 2**30:.0f} GiB"
    )
    said = " ".join(said.split()).replace("|", "/")
    said = said if len(said) < 160 else f"{said[:157]}…"
    shown = (
        f"{result['exact']}/{result['records']} | {result['wrong']} | {result['bag_recall']:.2f} | {result['cpu']:.1f}"
        if ("cpu" in result)
        else "– | – | – | –"
    )
    return f"| {result['type']} | {outcome(result)} | {shown} | {said} |"


def print_page(arguments: argparse.Namespace, recording: run.Recording) -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
    folder = arguments.table or arguments.out
    results = []
    for loss in arguments.losses.split(","):
        for kind in _TYPES[loss]:
            if arguments.types and kind not in arguments.types.split(","):
                continue
            work = partial(measured, kind, loss) if arguments.table is None else None
            result = recording.cell(folder / f"{loss}-{kind}.json", work)
            gc.collect()
            if result is not None:
                results.append(result)
    print(table(results))


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/model_types"))
    parser.add_argument("--losses", default="causal-lm,classification")
    parser.add_argument("--types", default="", help="comma-separated; all if left out")
    parser.add_argument("--table", type=Path, help="print the table of this folder and stop")
    arguments = run.parse(parser, argv)
    with run.record(__file__, arguments, seeds=(0, 1)) as recording:
        print_page(arguments, recording)


if __name__ == "__main__":
    main()
