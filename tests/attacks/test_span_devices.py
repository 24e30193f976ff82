"""The span attack mixes no devices, and the host waits for the accelerator as often as texts are long, not as often as they are
many. Checked with a pretended second device that computes on the host and refuses what an accelerator refuses; none was at hand.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from gradleak.attacks.span import Span
from gradleak.core.attack import Clock, Reconstruction
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.defenses.gaussian import Gaussian
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import LoRA, Subject, load_subject, with_lora

pytestmark = pytest.mark.oracle

if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("This torch lets no Python code stand in for a device.", allow_module_level=True)


class _NoDriver(backend_registration._DummyBackendModule):
    """What the rest of torch asks of a device that is not there."""

    def is_available(self) -> bool:
        return False

    def device_count(self) -> int:
        return 0

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.empty(0)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass


backend_registration._setup_privateuseone_for_python_backend("pretended", backend_module=_NoDriver())
THERE = torch.device("pretended:0")
aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.nonzero, aten._unique2, aten.unique_dim, aten.equal, aten.bincount}
"""Operations whose result, or its shape, the host has to know."""
PICKS = {aten.index, aten.index_put, aten.index_put_}


class There(Tensor):
    """A tensor that says it is on the second device; ``here`` holds its values."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        size = (here.shape, here.stride(), here.storage_offset())
        made = Tensor._make_wrapper_subclass(cls, *size, dtype=here.dtype, device=THERE)
        made.here = here
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} met a tensor of the second device outside of it.")


class SecondDevice(TorchDispatchMode):
    """Inside, an operation takes tensors of one device only.

    Allowed as on an accelerator: numbers of the host in pointwise operations, indices of the host, copies.

    Attributes:
        reads: how often each line of the package reads values on the host, for which an accelerator has to wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def __enter__(self) -> SecondDevice:
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *reason: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*reason)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        there = any(isinstance(each, There) for each in given)
        if there:
            _refuse(func, args, kwargs, given)
        device = kwargs.get("device")
        if device is not None:
            leaves = there and torch.device(device).type == "cpu"
            there = torch.device(device).type == THERE.type
            kwargs["device"] = torch.device("cpu")
            self._count(leaves)
        self._count(there and func.overloadpacket in READS)
        if there and kwargs.get("generator") is not None:
            raise RuntimeError(f"{func}: the generator is the host's.")
        made = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        if torch.Tag.inplace_view in func.tags and isinstance(args[0], There):
            _reshape_alone(func, args, kwargs)
        known = {id(_values(each)): each for each in given}
        return tree_map(lambda each: known.get(id(each)) if id(each) in known else _shell(each, there), made)

    def _count(self, waits: bool) -> None:
        if waits:
            self.reads[_place()] += 1


def _refuse(func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> None:
    """Raises where an accelerator would."""
    packet = func.overloadpacket
    plain = [each for each in given if not isinstance(each, There)]
    if packet in PICKS and isinstance(args[0], There):
        plain = [each for each in args[2:3] if not isinstance(each, There)]
    numbers = torch.Tag.pointwise in func.tags or packet in PICKS
    if packet is not aten.copy_ and any(each.ndim or not numbers for each in plain):
        raise RuntimeError(f"{func} mixes devices: {[(tuple(each.shape), str(each.device)) for each in given]}")
    if packet is aten.linalg_lstsq and kwargs.get("driver") not in {None, "gels"}:
        raise RuntimeError("An accelerator solves least squares by the driver gels only.")


def _shell(each: Any, there: bool) -> Any:
    return There(each) if there and isinstance(each, Tensor) else each


def _values(each: Any) -> Any:
    return each.here if isinstance(each, There) else each


def _reshape_alone(func: Any, args: Any, kwargs: Any) -> None:
    """The shape of the shell follows that of its values."""
    before = torch._C._meta_in_tls_dispatch_include()
    torch._C._set_meta_in_tls_dispatch_include(True)
    try:
        with no_dispatch():
            func(*args, **kwargs)
    finally:
        torch._C._set_meta_in_tls_dispatch_include(before)


def _place() -> str:
    """The innermost line of the package itself."""
    frame = sys._getframe(3)
    while frame is not None and "/gradleak/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return "elsewhere" if frame is None else f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"


def move(module: nn.Module) -> None:
    """Parameters and buffers of a module to the second device, in place."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(There(value.detach()), requires_grad=value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = There(value)


SIZES = {"hidden_size": 192, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 600}
SMALL = SIZES | {"hidden_size": 64, "vocab_size": 300}
GROWTH = ("span_context.py", "span_screen.py", "heads.py", "span_reading.py", "span_null.py")


def batch_of(subject: Subject, records: int, length: int) -> Batch:
    ids = torch.randint(6, 300, (records, length), generator=derive(records, "batch", length))
    labels = ids if subject.loss.name == "causal-lm" else torch.arange(records) % 2
    return Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)


def attacked(
    subject: Subject, batch: Batch, dtype: str = "float32", noise: float = 0.0, prior: str | None = None
) -> tuple[SecondDevice, Reconstruction]:
    """A run with model and update on the second device."""
    training = LocalTraining(dtype=dtype)  # type: ignore[arg-type]
    update = ClientTrainer(subject=subject, training=training).update(batch, derive(0))
    update = Gaussian(relative_std=noise).apply(update, derive(0, "noise")) if noise else update
    with SecondDevice() as device:
        move(subject.module)
        facts = {"subject": subject, "batch_size": batch.size, "seq_len": batch.inputs.shape[1]}
        shared = Update({name: There(tensor) for name, tensor in update.items()})
        observation = Observation(update=shared, knowledge=Knowledge(facts=facts))
        found = Span(prior=prior)(observation, rng=derive(0, "attack"), clock=Clock(120.0))
        return device, replace(found, records=tuple(record.cpu() for record in found.records))


def told(found: Reconstruction) -> set[tuple[int, ...]]:
    return {tuple(record.tolist()) for record in found.records}


def truth(batch: Batch, seen: int | None = None) -> set[tuple[int, ...]]:
    return {tuple(record[:seen].tolist()) for record in batch.records()}


DECODERS = ("gpt2", "llama", "gpt_neox", "opt", "gptj", "bloom", "deepseek_v3")
ENCODERS = ("bert", "roberta", "distilbert", "modernbert", "gte", "roformer", "mpnet")


@pytest.mark.parametrize("kind", [*DECODERS, *ENCODERS])
def test_no_operation_mixes_devices(kind: str) -> None:
    subject = load_subject(f"random:{kind}", settings=SIZES)
    batch = batch_of(subject, 3, 7)
    _, found = attacked(subject, batch)
    assert told(found) == truth(batch)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize(("dtype", "noise"), [("bf16", 0.0), ("float32", 1e-3)])
def test_none_does_under_noise(kind: str, dtype: str, noise: float) -> None:
    subject = load_subject(f"random:{kind}", settings=SIZES)
    batch = batch_of(subject, 2, 6)
    _, found = attacked(subject, batch, dtype, noise)
    assert told(found) == truth(batch)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert", "modernbert"])
def test_none_does_where_noise_leaves_little(kind: str) -> None:
    subject = load_subject(f"random:{kind}", settings=SMALL)
    batch = batch_of(subject, 3, 6)
    attacked(subject, batch, noise=0.1)


@pytest.mark.parametrize(
    "lacking", ["candidates.membership.read_first_input", "encoder.sentence_search.attention_equations"]
)
def test_none_does_where_the_model_is_run_in_the_place_of_a_law(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"gradleak.span.{lacking}", lambda *_, **__: None)
    monkeypatch.setattr("gradleak.span.encoder.sentence_search._ENUMERATE_AT_MOST", 0)
    subject = load_subject("random:bert", settings=SIZES)
    batch = batch_of(subject, 2, 4)
    _, found = attacked(subject, batch)
    assert told(found) == truth(batch)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_none_does_where_the_tables_are_frozen(kind: str, noise: float) -> None:
    subject = load_subject(f"random:{kind}", settings=SIZES)
    tables = {f"{name}.weight" for name, part in subject.module.named_modules() if isinstance(part, nn.Embedding)}
    subject = replace(subject, frozen=frozenset(tables))
    batch = batch_of(subject, 3, 7)
    _, found = attacked(subject, batch, noise=noise)
    assert noise or told(found) == truth(batch)


@pytest.mark.parametrize("b_std", [0.0, 0.02])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_none_does_with_adapters(kind: str, b_std: float) -> None:
    subject = with_lora(load_subject(f"random:{kind}", settings=SIZES), LoRA(rank=16, b_std=b_std), seed=0)
    batch = batch_of(subject, 1, 7)
    _, found = attacked(subject, batch)
    assert told(found) == truth(batch)


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["uniform", "public"])
def test_none_does_with_a_language_prior(prior: str) -> None:
    settings = SIZES | {"hidden_size": 64, "vocab_size": 260, "max_position_embeddings": 32, "initializer_range": 0.05}
    subject = load_subject("random:gpt2", loss="causal-lm", settings=settings)
    ids = torch.tensor([list(b"the m"), list(b"pleas")])
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=ids)
    _, found = attacked(subject, batch, noise=1.0, prior=prior)
    assert found.records


def test_none_does_beyond_the_width() -> None:
    subject = load_subject("random:gpt2", settings=SIZES | {"hidden_size": 64})
    batch = batch_of(subject, 10, 7)
    _, found = attacked(subject, batch)
    assert found.records


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_host_reads_as_often_for_many_texts_as_for_few(kind: str) -> None:
    def reads(records: int, length: int) -> int:
        subject = load_subject(f"random:{kind}", settings=SIZES)
        batch = batch_of(subject, records, length)
        device, found = attacked(subject, batch)
        assert told(found) == truth(batch)
        return sum(count for place, count in device.reads.items() if place.startswith(GROWTH))

    few, many, long = reads(3, 6), reads(15, 6), reads(3, 12)
    assert few > 0
    assert many <= few + 12
    assert long <= 2.5 * few


def test_the_second_device_refuses_what_it_should() -> None:
    there = There(torch.ones(3))
    with SecondDevice() as device:
        made = there * 2 + torch.ones(3, device=there.device)
        assert isinstance(made, There) and there[torch.arange(2)].device == THERE
        assert isinstance(there + torch.tensor(1.0), There)
        assert not device.reads
        assert float(made.sum()) == 9.0 and made.tolist() == [3.0] * 3
        assert sum(device.reads.values()) == 2
        for mixes in (
            lambda: there + torch.ones(3),
            lambda: there.sum() + torch.ones(3),
            lambda: torch.cat((there, torch.ones(1))),
            lambda: torch.ones(3)[there > 0],
            lambda: there.new_empty(3).normal_(generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError):
                mixes()
