"""Why: the main job in at most five lines of Python, on a model and a batch that the caller already holds.

audit = gradleak.audit(model, ["a private sentence"], tokenizer=tokenizer, defenses=["gaussian(relative_std=0.5)"])
print(audit.verdict.headline)
audit.save("runs/mine")
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from gradleak.core.batch import Batch
from gradleak.core.errors import DataError, UsageError
from gradleak.core.knowledge import Observation
from gradleak.core.loss import find_loss
from gradleak.core.record import Record
from gradleak.core.rng import derive
from gradleak.harness.captured.attack import Finding, attack_capture, attack_observation
from gradleak.harness.captured.files import Manifest, write_capture
from gradleak.harness.request import defaults
from gradleak.harness.request.catalogue import make_attacks
from gradleak.harness.request.data import Pool, draw_batch
from gradleak.harness.request.fingerprint import fingerprint
from gradleak.harness.request.plan import Call, DataSource, Plan
from gradleak.harness.request.prepare import Request, make_plan, read_chain, read_methods
from gradleak.harness.request.shares import adapted, parse_share
from gradleak.harness.request.sources import FixedSource, Others, public_texts
from gradleak.harness.running.runner import run
from gradleak.harness.running.store import RunFolder, read_plan
from gradleak.models import Subject, load_subject
from gradleak.report import write
from gradleak.report.conclusions.verdict import Verdict, verdict
from gradleak.report.terminal.table import table as render_table

Records = Batch | Sequence[str] | Mapping[str, Any]


class _Scratch:
    """A temporary folder that is gone with this object, or at the end of the process."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="gradleak-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What an audit found.

    Attributes:
        path: the run folder, as ``gradleak audit`` writes it; a temporary one, gone with this object, unless ``out`` was given.
        records: one per cell.
    """

    path: Path
    records: tuple[Record, ...]
    _scratch: _Scratch | None = field(default=None, repr=False)

    @property
    def plan(self) -> Plan:
        return read_plan(self.path)

    @property
    def verdict(self) -> Verdict:
        """The reading of all records in words."""
        return verdict(self.records)

    def table(self) -> Table:
        """Attack × defense with intervals, to be printed with ``rich``."""
        return render_table(self.records)

    def report(self, *, reveal: bool = False) -> Path:
        """Writes ``report.html`` into the run folder; recovered content is redacted unless ``reveal``."""
        return write(self.path, reveal=reveal)

    def save(self, path: str | Path, *, reveal: bool = False) -> Path:
        """Copies the run folder to ``path``, writes the report there and returns its path.

        Raises:
            UsageError: if something is at ``path`` already.
        """
        target = Path(path)
        if target.exists():
            raise UsageError(f"{target} exists. Give the name of a new folder.")
        shutil.copytree(self.path, target, ignore=shutil.ignore_patterns(".lock"))
        return write(target, reveal=reveal)


def audit(
    model: str | Path | nn.Module,
    batch: Records,
    *,
    loss: str | None = None,
    share: str = defaults.SHARE,
    threat: str = defaults.THREAT,
    attacks: str | Sequence[str] | None = None,
    defenses: str | Sequence[str] = (),
    tokenizer: Any = None,
    max_length: int = defaults.MAX_LENGTH,
    seed: int = 0,
    repeats: int = 1,
    budget: float | None = None,
    first_blocks: int | None = None,
    out: str | Path | None = None,
) -> Audit:
    """Audits what one shared update about ``batch`` gives away.

    Args:
        model: a Hugging Face module, which is left as it was but for its attention kernel, or the same inside a peft
            wrapper; or what ``--model`` takes.
        batch: private texts; or what a tokenizer or image processor returns, with ``"labels"``; or a ``Batch``.
        loss: ``classification``, ``causal-lm`` or ``masked-lm``; the model's own if None.
        share: such as ``"delta(steps=5, lr=0.001)"`` or ``"lora(rank=16)"``; see ``LocalTraining``.
        threat: what the adversary knows.
        attacks, defenses: specs as on the command line; every defense is compared with none.
        tokenizer: of the module; needed to score texts in the model's own tokens.
        max_length: tokens per text; longer ones are cut.
        repeats: runs with fresh randomness; more narrow the intervals.
        budget: seconds for all attacks together.
        first_blocks: load only the embeddings, this many blocks and the head of a named model.
        out: run folder to write or to resume.

    Raises:
        UsageError: with cause and remedy, before any heavy work.
    """
    if loss is not None:
        find_loss(loss)
    request = Request(
        model=model if isinstance(model, str) else getattr(model, "name_or_path", "") or type(model).__name__,
        max_length=max_length,
        loss=loss,
        share=share,
        attacks=",".join(_several(attacks)) if attacks is not None else None,
        defenses=tuple(_several(defenses)),
        threat=threat,
        seed=seed,
        repeats=repeats,
        budget_seconds=budget,
        first_blocks=first_blocks,
    )
    methods = read_methods(request)
    if isinstance(model, nn.Module) and methods.training.lora is not None:
        raise UsageError(
            "A module that was handed over is left as it is. Wrap it with peft yourself (get_peft_model) and pass that."
        )
    subject = load_subject(model, loss=loss, tokenizer=tokenizer, seed=seed, first_blocks=first_blocks)
    subject = adapted(subject, methods.training, seed=seed)
    private = read_batch(batch, subject, max_length=max_length, seed=seed)
    data = DataSource(name="given in Python", fingerprint=fingerprint(_parts(private)), size=private.size)
    length = private.inputs.shape[1] if private.modality == "text" else max_length
    plan = make_plan(request, methods, subject, data, batch_size=private.size, max_length=max(length, 1))
    others = public_texts() if private.modality == "text" else Others()
    scratch = _Scratch() if out is None else None
    folder = scratch.path if scratch is not None else Path(str(out))
    with RunFolder(folder, plan) as store:
        run(plan, subject, FixedSource(batch=private, others=others), store)
        records = tuple(store.records)
    return Audit(path=folder, records=records, _scratch=scratch)


def attack(
    observation: Observation | str | Path,
    model: str | Path | nn.Module | None = None,
    *,
    attacks: str | Sequence[str] | None = None,
    loss: str | None = None,
    tokenizer: Any = None,
    seed: int = 0,
    budget: float | None = None,
    first_blocks: int | None = None,
    reference: str | Path | None = None,
) -> tuple[Finding, ...]:
    """Attacks one captured update: an ``Observation``, or the path of one together with its ``model``.

    Args:
        reference: where whole weights were captured, those that the round began with.

    Raises:
        UsageError: with cause and remedy.
    """
    text = None if attacks is None else ",".join(_several(attacks))
    if not isinstance(observation, (Observation, str, Path)):
        raise UsageError(
            f"attack takes the path of a captured update or an Observation, not a {type(observation).__name__}. Save tensors first: "
            "gradleak.capture(update, path)."
        )
    if isinstance(observation, Observation):
        chosen = None if text is None else make_attacks(text)
        subject = observation.knowledge.facts.get("subject")
        if subject is None:
            raise UsageError("This observation does not hold the model. Load it with load_observation(path, subject).")
        return attack_observation(observation, subject, attacks=chosen, seed=seed, budget_seconds=budget)
    if model is None:
        raise UsageError("An observation on disk does not hold the model. Give attack(path, model).")
    return attack_capture(
        observation,
        model,
        attacks=text,
        loss=loss,
        tokenizer=tokenizer,
        seed=seed,
        budget_seconds=budget,
        first_blocks=first_blocks,
        reference=reference,
    ).findings


def capture(
    update: Mapping[str, Tensor],
    path: str | Path,
    *,
    model: str | None = None,
    loss: str | None = None,
    classes: int | None = None,
    batch_size: int | None = None,
    seq_len: int | None = None,
    framed: bool | None = None,
    share: str | None = None,
    defenses: str | None = None,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
) -> None:
    """Saves an update, parameter name → gradient or delta, with what is known about it, for ``gradleak attack``.

    Everything left out is unknown to the adversary; attacks that need it say so.

    Args:
        framed: whether the records are texts as the model's tokenizer frames and pads them.
        share: how the client trained, such as ``"gradient"``; without it no attack can replay the client.
        defenses: the chain in use, ``"none"`` if there is none.

    Raises:
        DataError: if the update is empty or not finite.
        SpecError, UnknownNameError: for a spec that cannot be read.
    """
    training = None if share is None else parse_share(share)
    stages: list[Call] | None = None
    if defenses is not None:
        stages = [] if defenses.strip() == "none" else list(read_chain(defenses))
    manifest = Manifest(
        model=model,
        loss=None if loss is None else find_loss(loss).name,
        classes=classes,
        batch_size=batch_size,
        seq_len=seq_len,
        framed=framed,
        mask=None if mask is None else mask.bool().tolist(),
        labels=None if labels is None else labels.tolist(),
        stages=stages,
        training=None if training is None else {f: getattr(training, f) for f in type(training).__dataclass_fields__},
    )
    write_capture(update, path, manifest)


def read_batch(batch: Records, subject: Subject, *, max_length: int, seed: int) -> Batch:
    """The private batch as the core holds it. Labels that are not given are drawn, or the text itself for language models.

    Raises:
        DataError: if it is empty or lacks what the model takes.
    """
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, Mapping):
        return _from_mapping(batch, subject, seed=seed)
    texts = tuple(batch)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError("The batch must hold at least one text, and no empty ones. Leave the empty ones out.")
    pool = Pool(name="given", texts=texts, images=None, labels=None, label_names=None, fingerprint="")
    rng = derive(seed, "batch", 0)
    return draw_batch(pool, subject, batch_size=len(texts), max_length=max_length, rng=rng)[0]


def _from_mapping(batch: Mapping[str, Any], subject: Subject, *, seed: int) -> Batch:
    key = "pixel_values" if subject.modality == "image" else "input_ids"
    if key not in batch:
        raise DataError(
            f"The batch lacks {key!r}, which {subject.name} takes. It has: {', '.join(map(str, batch)) or 'nothing'}."
        )
    inputs = torch.as_tensor(batch[key])
    if subject.modality == "image":
        mask = torch.ones(inputs.shape[0], dtype=torch.bool)
    else:
        given = batch.get("attention_mask")
        mask = torch.ones_like(inputs, dtype=torch.bool) if given is None else torch.as_tensor(given).bool()
    labels = batch.get("labels")
    return Batch(
        inputs=inputs,
        mask=mask,
        labels=torch.as_tensor(labels) if labels is not None else _labels(inputs, mask, subject, seed=seed),
    )


def _labels(inputs: Tensor, mask: Tensor, subject: Subject, *, seed: int) -> Tensor:
    if subject.loss.labels_records:
        return subject.loss.random_labels(inputs, subject.classes, derive(seed, "labels"))
    labels = subject.loss.labels_from(inputs, mask)
    if labels is None:
        raise DataError(
            "A masked-LM batch needs 'labels': the hidden tokens, -100 elsewhere. Pass texts to have them drawn."
        )
    return labels


def _several(specs: str | Sequence[str]) -> tuple[str, ...]:
    return (specs,) if isinstance(specs, str) else tuple(specs)


def _parts(batch: Batch) -> tuple[tuple[str, Tensor], ...]:
    return (("inputs", batch.inputs), ("mask", batch.mask), ("labels", batch.labels))
