"""What a captured file is said to be: its kind, format, noise and names, whatever was done to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import gradleak
from gradleak.core.errors import DataError
from gradleak.models import Subject
from tests.support.captured import gradient_of, subject_of

pytestmark = pytest.mark.contract


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of()


@pytest.fixture(scope="module")
def gradient(subject: Subject) -> dict[str, Tensor]:
    return gradient_of(subject)


@pytest.fixture(scope="module")
def weights(subject: Subject) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in subject.module.named_parameters()}


@pytest.mark.contract
@pytest.mark.parametrize("factor", [1.0, -1.0, 1 / 3, 65536.0, 1e-5])
@pytest.mark.parametrize("stored", [torch.float32, torch.float64])
def test_a_gradient_is_one_at_any_scale_and_in_any_storage(
    subject: Subject, gradient: dict[str, Tensor], factor: float, stored: torch.dtype
) -> None:
    inspection = gradleak.inspect_update({n: t.to(stored) * factor for n, t in gradient.items()}, subject)
    assert (inspection.kind, inspection.numbers.format) == ("gradient", "float32")
    assert inspection.span is not None
    assert inspection.span.tokens > 0
    assert inspection.remarks == ()


@pytest.mark.contract
@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16")])
@pytest.mark.parametrize("factor", [1.0, 1 / 65536, 1 / 3])
def test_the_format_of_autocast_is_seen_at_any_scale(
    subject: Subject, dtype: torch.dtype, name: str, factor: float
) -> None:
    scaled = {n: t * factor for n, t in gradient_of(subject, dtype=dtype, scale=1024.0).items()}
    inspection = gradleak.inspect_update(scaled, subject)
    assert (inspection.kind, inspection.numbers.format) == ("gradient", name)
    noise = inspection.numbers.noise
    assert noise.kind == "proportional"
    assert noise.size == pytest.approx(0.4247 * 2.0 ** -{"bf16": 8, "fp16": 11}[name], rel=0.1)


@pytest.mark.contract
def test_whole_weights_are_named_and_a_reference_is_taken_off(
    subject: Subject, gradient: dict[str, Tensor], weights: dict[str, Tensor]
) -> None:
    after = {name: value - 0.1 * gradient[name] for name, value in weights.items()}
    for model in (subject, None):
        inspection = gradleak.inspect_update(after, model)
        assert inspection.kind == "weights"
        assert "--reference" in inspection.remarks[0]
    inspection = gradleak.inspect_update(after, subject, reference=weights)
    assert (inspection.kind, inspection.sign, inspection.subtracted) == ("delta", 1, True)
    assert inspection.span is not None
    assert inspection.span.tokens > 0
    with pytest.raises(DataError, match="equal the reference"):
        gradleak.inspect_update(weights, subject, reference=weights)


@pytest.mark.contract
@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_of_weights_is_told_from_a_gradient_with_its_sign(
    subject: Subject, gradient: dict[str, Tensor], weights: dict[str, Tensor], sign: int
) -> None:
    change = {name: sign * ((value - 0.05 * gradient[name]) - value) for name, value in weights.items()}
    inspection = gradleak.inspect_update(change, subject)
    assert (inspection.kind, inspection.sign) == ("delta", sign)
    assert gradleak.inspect_update(change).kind == "delta"


@pytest.mark.contract
def test_gradients_of_few_bits_are_no_differences(subject: Subject, gradient: dict[str, Tensor]) -> None:
    """Numbers of eight bits lead from weight to weight by chance."""
    rounded = {name: t.bfloat16().float() for name, t in gradient.items()}
    assert gradleak.inspect_update(rounded, subject).kind == "gradient"
    assert gradleak.inspect_update(rounded).kind == "gradient"


@pytest.mark.contract
def test_a_first_step_of_adam_is_a_delta(subject: Subject, gradient: dict[str, Tensor]) -> None:
    step = {name: -1e-3 * g / (g.abs() + 1e-8) for name, g in gradient.items()}
    inspection = gradleak.inspect_update(step)
    assert inspection.kind == "delta"
    assert inspection.numbers.step == pytest.approx(1e-3, rel=0.05)


@pytest.mark.contract
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module.", "base_model.model.", "net.model."]
)
def test_names_behind_any_wrapper_fit(subject: Subject, gradient: dict[str, Tensor], prefix: str) -> None:
    inspection = gradleak.inspect_update({prefix + name: t for name, t in gradient.items()}, subject)
    assert inspection.names is not None
    assert dict(inspection.names.own) == {prefix + name: name for name in gradient}
    assert inspection.names.unknown == ()


@pytest.mark.contract
def test_a_trunk_alone_and_another_head_fit_where_they_can(subject: Subject, gradient: dict[str, Tensor]) -> None:
    trunk = {name.removeprefix("bert."): t for name, t in gradient.items() if name.startswith("bert.")}
    inspection = gradleak.inspect_update({**trunk, "qa_outputs.weight": torch.ones(2, 64)}, subject)
    assert inspection.names is not None
    assert len(inspection.names.own) == len(trunk)
    assert inspection.names.unknown == ("qa_outputs.weight",)
    assert "another head" in inspection.remarks[0]


@pytest.mark.contract
def test_a_tied_head_counts_once() -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    causal = gradleak.load_subject("random:gpt2", loss="causal-lm", settings=sizes)
    state = {name: torch.randn_like(t) for name, t in causal.module.state_dict().items() if t.is_floating_point()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    inspection = gradleak.inspect_update(state, causal)
    assert inspection.names is not None
    assert inspection.names.aliases == ("lm_head.weight",)
    assert inspection.names.unknown == ()


@pytest.mark.contract
def test_another_model_is_asked_about() -> None:
    mine, other = subject_of(seed=0), subject_of(seed=1)
    inspection = gradleak.inspect_update(gradient_of(mine), other)
    assert any("no token of this vocabulary fits" in remark for remark in inspection.remarks)


@pytest.mark.errors
def test_what_cannot_be_read_has_a_message(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        gradleak.inspect_update(tmp_path / "missing.safetensors")
    with pytest.raises(DataError, match="NaN"):
        gradleak.inspect_update({"w": torch.tensor([float("nan")])})
    with pytest.raises(DataError, match="no tensor of floating"):
        gradleak.inspect_update({"w": torch.tensor([1])})
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    assert gradleak.inspect_update(tmp_path / "one.safetensors").tensors == 1


@pytest.mark.contract
def test_shards_are_read_together(tmp_path: Path, gradient: dict[str, Tensor]) -> None:
    names = sorted(gradient)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({n: gradient[n].contiguous() for n in part}, tmp_path / f"model-0000{number}.safetensors")
    assert gradleak.inspect_update(tmp_path).tensors == len(gradient)
    listed = {
        n: f"model-0000{number}.safetensors" for number, part in enumerate((names[::2], names[1::2])) for n in part
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}), encoding="utf-8")
    assert gradleak.inspect_update(tmp_path).tensors == len(gradient)
    (tmp_path / "model-00001.safetensors").unlink()
    with pytest.raises(DataError, match="lacks the shard"):
        gradleak.inspect_update(tmp_path)
