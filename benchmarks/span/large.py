"""The span attack on a model of 8 billion parameters, of which only the first two blocks are loaded.

Writes a sharded checkpoint of the shape of Llama-3-8B with random weights (hidden 4096, vocabulary 128,256, 32 heads,
8 key-value heads, 32 blocks). The files of blocks 3 to 32 are named in its index and are never written, so nothing can
read them. Then it loads the first two blocks, makes one observation, attacks it and prints memory and time per step.

The observation is the gradient of the two-block model (embeddings and head frozen, so the update holds the blocks only).
That is legitimate for this attack: what the first attention and its neighbors *read* is the same in a model of any depth;
only the error signals δ, which the attack never uses, would differ.

    python -m benchmarks.span.large                                   the 8-billion shape; needs 3 GB of disk
    python -m benchmarks.span.large --hidden 256 --vocabulary 5000    the same in seconds
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.common import run
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.harness.captured.attack import attack_observation
from gradleak.harness.request.catalogue import make_attacks
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.models.extent import cut_config, shapes_without_weights

GIB = 2**30


class Steps:
    """Prints one row per step: processor seconds, resident memory at its end, and the peak of the process so far."""

    def __init__(self) -> None:
        self.start = time.process_time()
        print("| step | CPU s | resident GiB | peak GiB |\n|---|---|---|---|")

    def done(self, step: str) -> None:
        now = time.process_time()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        resident = pages * resource.getpagesize()
        print(f"| {step} | {now - self.start:.1f} | {resident / GIB:.2f} | {peak / GIB:.2f} |", flush=True)
        self.start = now


def config_of(hidden: int, vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        rope_theta=500000.0,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        torch_dtype="bfloat16",
    )


def write_checkpoint(folder: Path, config: LlamaConfig, blocks: int, seed: int) -> None:
    """One file per block and one for the rest, in bfloat16; files of later blocks are named and not written."""
    whole = shapes_without_weights(LlamaForCausalLM, config)
    here = shapes_without_weights(LlamaForCausalLM, cut_config(config, blocks))
    rng = derive(seed, "weights")
    files: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in whole.items():
        part = name.split(".layers.")[1].split(".")[0] if ".layers." in name else "rest"
        files.setdefault(f"model-{part}.safetensors", {})[name] = shape
    for file, shapes in files.items():
        if set(shapes) <= set(here):
            save_file({name: draw(shape, rng) for name, shape in shapes.items()}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, shapes in files.items() for name in shapes}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config.save_pretrained(folder)


def draw(shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    """Normal with standard deviation 0.02, as these models are initialized; gains of norms are one."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    made = torch.empty(shape, dtype=torch.bfloat16)
    for rows in made.split(4096):
        rows.copy_(torch.randn(rows.shape, generator=rng) * 0.02)
    return made


def observe(subject: Subject, batch_size: int, length: int, seed: int) -> tuple[Observation, Batch]:
    for name, parameter in subject.module.named_parameters():
        parameter.requires_grad_(".layers." in name)
    ids = torch.randint(subject.anatomy.vocab_size, (batch_size, length), generator=derive(seed, "batch"))
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=ids)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    update = trainer.update(batch, derive(seed, "training"))
    facts = {"subject": subject, "trainer": trainer, "stages": (), "batch_size": batch_size, "seq_len": length}
    return Observation(update=update, knowledge=Knowledge(facts=facts)), batch


def print_page(asked: argparse.Namespace) -> None:
    print(f"# Span on a Llama shape: hidden {asked.hidden}, vocabulary {asked.vocabulary}\n")
    print(f"Threads: {torch.get_num_threads()}; batch {asked.batch_size} × {asked.length}, random tokens, causal-lm.\n")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        steps = Steps()
        write_checkpoint(folder, config_of(asked.hidden, asked.vocabulary), asked.first_blocks, asked.seed)
        written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        steps.done(f"write the files that are needed ({written / GIB:.2f} GiB on disk)")
        subject = load_subject(folder, loss="causal-lm", first_blocks=asked.first_blocks)
        steps.done("load, read the anatomy")
        observation, batch = observe(subject, asked.batch_size, asked.length, asked.seed)
        held = sum(tensor.nbytes for tensor in observation.update.values())
        steps.done(f"one gradient ({held / GIB:.2f} GiB shared)")
        (found,) = attack_observation(
            observation, subject, attacks=make_attacks("span"), seed=asked.seed, budget_seconds=asked.budget
        )
        steps.done("span")
    recovered = {tuple(record.tolist()) for record in found.reconstruction.records}
    # The last token of a record has no loss and no reader: all before it is what this attack can see.
    exact = sum(any(known[: len(r) - 1] == tuple(r.tolist()[:-1]) for known in recovered) for r in batch.records())
    print(f"\n{subject.loaded}")
    print(f"\n{found.reconstruction.status.name}: {found.reconstruction.message}")
    print(f"\nRecords recovered up to their last token: {exact} of {batch.size}; proposals: {len(recovered)}.")


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    reader.add_argument("--hidden", type=int, default=4096)
    reader.add_argument("--vocabulary", type=int, default=128256)
    reader.add_argument("--batch-size", type=int, default=8)
    reader.add_argument("--length", type=int, default=16)
    reader.add_argument("--first-blocks", type=int, default=2)
    reader.add_argument("--seed", type=int, default=0)
    reader.add_argument("--budget", type=float, default=480.0, help="seconds for the attack")
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=(asked.seed,)):
        print_page(asked)


if __name__ == "__main__":
    main()
