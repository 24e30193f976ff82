"""The span attack on decoders mixes no devices, and the host waits for the accelerator as often as texts are long, not as often as
they are many. Checked with marks in the place of an accelerator; no accelerator was at hand.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

from gradleak.attacks.span import Span
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge
from gradleak.core.observation import Observation
from gradleak.core.rng import derive
from gradleak.mechanics.training import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

_READS = {
    "item",
    "tolist",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "nonzero",
    "unique",
    "equal",
    "allclose",
    "numpy",
}
_SHAPES = {
    "size",
    "dim",
    "numel",
    "stride",
    "__get__",
    "__len__",
    "is_floating_point",
    "element_size",
    "data_ptr",
    "__hash__",
}


class DeviceMarks(TorchFunctionMode):
    """A stand-in for a second device: what comes from a marked tensor, or was made with ``device=``, is marked, and an operation
    that mixes marked and unmarked tensors would fail on an accelerator.

    Attributes:
        mixed: how often each place mixes devices.
        reads: how often each place reads values on the host, for which an accelerator has to wait.
    """

    def __init__(self, marked: Iterable[Tensor]) -> None:
        super().__init__()
        self._marks = WeakTensorKeyDictionary()
        for tensor in marked:
            self._marks[tensor] = True
        self.mixed: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        made = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        marked = [each for each in given if each in self._marks]
        plain = [each for each in given if each not in self._marks and each.ndim > 0]
        if name == "__get__" and not isinstance(made, Tensor):
            return made
        if marked and name in _READS:
            self.reads[_place()] += 1
        # Indices of the host may pick from an accelerator's tensor.
        indexing = name in {"__getitem__", "__setitem__"} and given and given[0] in self._marks
        if plain and any(each.ndim > 0 for each in marked) and not indexing and name not in _SHAPES | {"to", "type_as"}:
            self.mixed[f"{_place()} {name}"] += 1
        moved = kwargs.get("device") is not None or (
            name == "to" and any(isinstance(each, torch.device) for each in args)
        )
        if marked or moved:
            for each in tree_flatten(made)[0]:
                if isinstance(each, Tensor):
                    self._marks[each] = True
        return made


def _place() -> str:
    """The innermost line of the package itself."""
    frame = sys._getframe(2)
    while frame is not None and "gradleak" not in frame.f_code.co_filename:
        frame = frame.f_back
    return "elsewhere" if frame is None else f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"


SIZES = {"hidden_size": 192, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 600}
GROWTH = ("span_context.py", "span_screen.py", "heads.py", "span_reading.py", "span_null.py")


def marks_of(subject: Subject, records: int, length: int, dtype: str = "float32") -> tuple[DeviceMarks, bool]:
    """What a run on a marked model and update did, and whether it found the batch."""
    ids = torch.randint(6, 600, (records, length), generator=derive(records, "batch", length))
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=torch.arange(records) % 2)
    training = LocalTraining(dtype=dtype)  # type: ignore[arg-type]
    update = ClientTrainer(subject=subject, training=training).update(batch, derive(0))
    facts = {"subject": subject, "batch_size": records, "seq_len": length}
    observation = Observation(update=update, knowledge=Knowledge(facts=facts))
    with DeviceMarks([*subject.module.parameters(), *subject.module.buffers(), *update.values()]) as marks:
        found = Span()(observation, rng=derive(0, "attack"))
    return marks, {tuple(r.tolist()) for r in found.records} == {tuple(r.tolist()) for r in ids}


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, "float32") for kind in ("gpt2", "llama", "gpt_neox", "opt", "gptj")),
        ("gpt2", "bf16"),
        ("llama", "bf16"),
    ],
)
def test_no_operation_mixes_devices(kind: str, dtype: str) -> None:
    marks, right = marks_of(load_subject(f"random:{kind}", settings=SIZES), 3, 7, dtype)
    assert right
    assert not marks.mixed


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_host_reads_as_often_for_many_texts_as_for_few(kind: str) -> None:
    subject = load_subject(f"random:{kind}", settings=SIZES)

    def reads(records: int, length: int) -> int:
        marks, right = marks_of(subject, records, length)
        assert right
        return sum(count for place, count in marks.reads.items() if place.startswith(GROWTH))

    few, many, long = reads(3, 6), reads(15, 6), reads(3, 12)
    assert few > 0
    assert many <= few + 12
    assert long <= 2.5 * few


def test_the_marks_see_what_they_are_for() -> None:
    there = torch.ones(3)
    with DeviceMarks([there]) as marks:
        _ = there * 2 + torch.ones(3, device=there.device)
        assert not marks.mixed
        _ = there[torch.arange(2)]
        assert not marks.mixed
        _ = there * 2 + torch.ones(3)
        assert sum(marks.mixed.values()) == 1
        assert not marks.reads
        _ = float(there.sum())
        assert sum(marks.reads.values()) == 1
