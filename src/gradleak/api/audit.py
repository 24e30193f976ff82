"""The main job on a model and a batch that the caller already holds.

    audit = gradleak.audit(model, ["a private sentence"], tokenizer=tokenizer, defenses=["gaussian(relative_std=0.5)"])
    print(audit.verdict.headline)
    audit.save("runs/mine")

Must not import torch before it is called.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradleak.api._methods import attacks_text, defenses_text
from gradleak.core.errors import UsageError
from gradleak.core.record import Record
from gradleak.harness.request import defaults

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from gradleak.api._methods import Attacks, Defenses
    from gradleak.harness.request.batches import Records
    from gradleak.harness.request.plan import Plan
    from gradleak.report.conclusions.verdict import Verdict


class _Scratch:
    """A temporary folder that is gone with this object, or at the end of the process."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="gradleak-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """The result of an audit.

    Attributes:
        path: the run folder, as ``gradleak audit`` writes it; a temporary one, gone with this object, unless ``out`` was given.
        records: one per cell.
    """

    path: Path
    records: tuple[Record, ...]
    _scratch: _Scratch | None = field(default=None, repr=False)

    @property
    def plan(self) -> Plan:
        from gradleak.harness.running.store import read_plan

        return read_plan(self.path)

    @property
    def verdict(self) -> Verdict:
        """The reading of all records in words."""
        from gradleak.report.conclusions.verdict import verdict

        return verdict(self.records)

    def table(self) -> Table:
        """Attack × defense with intervals, to be printed with ``rich``."""
        from gradleak.report.terminal.table import table

        return table(self.records)

    def report(self, *, reveal: bool = False) -> Path:
        """Writes ``report.html`` into the run folder; recovered content is redacted unless ``reveal``."""
        from gradleak.report import write

        return write(self.path, reveal=reveal)

    def save(self, path: str | Path, *, reveal: bool = False) -> Path:
        """Copies the run folder to ``path``, writes the report there and returns its path.

        Raises:
            UsageError: if something is at ``path`` already.
        """
        from gradleak.report import write

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
    attacks: Attacks | None = None,
    defenses: Defenses = (),
    tokenizer: Any = None,
    max_length: int = defaults.MAX_LENGTH,
    seed: int = 0,
    repeats: int = 1,
    budget: float | None = None,
    first_blocks: int | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
) -> Audit:
    """Audits what one shared update about ``batch`` gives away.

    The update is made as a client would make it, every attack is run against every defense and against none, and one judge
    scores what the attacks propose beside what guessing without the update would score.

    Args:
        model: a Hugging Face module, which is left as it was but for its attention kernel, or the same inside a peft
            wrapper; or a local folder, a hub id, ``"minilm"`` or ``"random:TYPE"``.
        batch: private texts; or what a tokenizer or image processor returns, with ``"labels"``; or a ``gradleak.Batch``.
        loss: ``"classification"``, ``"causal-lm"`` or ``"masked-lm"``; the model's own if None.
        share: how the client trains and what it sends: ``"gradient"``, ``"delta(steps=5, lr=0.001)"`` or ``"lora(rank=16)"``.
        threat: what the adversary knows; ``gradleak.list_methods("threats")`` has the names.
        attacks: a ``gradleak.Attack``, text such as ``"dlg(iterations=100)"``, or a sequence of either; the defaults for
            texts or images if None.
        defenses: each is compared with none. One is a ``gradleak.Stage``, text such as ``"clip(max_norm=1.0)+sign()"``, or
            a sequence of these that is applied in order; several are a sequence of defenses.
        tokenizer: of the module; needed to score texts in the model's own tokens.
        max_length: tokens per text; longer ones are cut.
        seed: of every random draw; the same seed gives the same records.
        repeats: runs with fresh randomness; more narrow the intervals.
        budget: seconds for all attacks together, shared evenly; no limit if None.
        first_blocks: load only the embeddings, this many blocks and the head of a named model.
        settings: of the configuration of a ``"random:TYPE"`` model, such as ``{"hidden_size": 128}``.
        out: run folder to write or to resume; a temporary one, gone with the result, if None.

    Returns:
        The records, with verdict, table and report.

    Raises:
        UsageError: with cause and remedy, before any heavy work.
    """
    from torch import nn

    from gradleak.core.loss import find_loss
    from gradleak.harness.request.batches import read_batch
    from gradleak.harness.request.fingerprint import fingerprint
    from gradleak.harness.request.plan import DataSource
    from gradleak.harness.request.prepare import Request, make_plan, read_methods
    from gradleak.harness.request.shares import adapted
    from gradleak.harness.request.sources import FixedSource, Others, public_texts
    from gradleak.harness.running.runner import run
    from gradleak.harness.running.store import RunFolder
    from gradleak.models import load_subject

    if loss is not None:
        find_loss(loss)
    request = Request(
        model=model if isinstance(model, str) else getattr(model, "name_or_path", "") or type(model).__name__,
        max_length=max_length,
        loss=loss,
        share=share,
        attacks=attacks_text(attacks),
        defenses=defenses_text(defenses),
        threat=threat,
        seed=seed,
        repeats=repeats,
        budget_seconds=budget,
        settings=settings or {},
        first_blocks=first_blocks,
    )
    methods = read_methods(request)
    if isinstance(model, nn.Module) and methods.training.lora is not None:
        raise UsageError(
            "A module that was handed over is left as it is. Wrap it with peft yourself (get_peft_model) and pass that."
        )
    subject = load_subject(
        model, loss=loss, settings=request.settings, tokenizer=tokenizer, seed=seed, first_blocks=first_blocks
    )
    subject = adapted(subject, methods.training, seed=seed)
    private = read_batch(batch, subject, max_length=max_length, seed=seed)
    parts = (("inputs", private.inputs), ("mask", private.mask), ("labels", private.labels))
    data = DataSource(name="given in Python", fingerprint=fingerprint(parts), size=private.size)
    length = private.inputs.shape[1] if private.modality == "text" else max_length
    plan = make_plan(request, methods, subject, data, batch_size=private.size, max_length=max(length, 1))
    others = public_texts() if private.modality == "text" else Others()
    scratch = _Scratch() if out is None else None
    folder = scratch.path if scratch is not None else Path(str(out))
    with RunFolder(folder, plan) as store:
        run(plan, subject, FixedSource(batch=private, others=others), store)
        records = tuple(store.records)
    return Audit(path=folder, records=records, _scratch=scratch)
