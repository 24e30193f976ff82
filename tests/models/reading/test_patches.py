"""The entrance of a vision transformer is found by what it does: which convolution cuts, and which table's gradient follows."""

from __future__ import annotations

import pytest
import torch

from gradleak.models.reading.patches import PatchEmbedding, read_patch_embedding
from tests.support.vision import vision_subject

pytestmark = pytest.mark.oracle


def entrance_of(kind: str, size: int = 32, **settings: object) -> PatchEmbedding:
    subject = vision_subject(kind, size=size, **settings)
    found = read_patch_embedding(subject.module, subject.anatomy)
    assert found is not None
    return found


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("kind", "extra"), [("vit", 1), ("deit", 2), ("ijepa", 0), ("vit_msn", 1), ("dinov2_with_registers", 1)]
)
def test_patch_rows_come_last_in_order(kind: str, extra: int) -> None:
    """The layouts as their authors describe them; registers have no row of their own."""
    found = entrance_of(kind)
    assert found.table is not None and found.table.endswith("position_embeddings")
    assert found.mixing is not None
    wanted = torch.cat([torch.zeros(extra, 16), torch.eye(16)]).double()
    assert torch.equal(found.mixing, wanted)


@pytest.mark.oracle
def test_an_interpolated_table_is_the_librarys_interpolation() -> None:
    subject = vision_subject("dinov2", size=64)
    subject.module.config.image_size = 32
    found = read_patch_embedding(subject.module, subject.anatomy)
    assert found is not None and found.mixing is not None and found.mixing.shape == (65, 16)
    grid = torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)
    stretched = torch.nn.functional.interpolate(grid, size=(4, 4), mode="bicubic", align_corners=False)
    assert torch.allclose(found.mixing[1:], stretched.reshape(64, 16), atol=1e-5)


@pytest.mark.contract
def test_a_bias_of_the_attention_is_no_table() -> None:
    found = entrance_of("data2vec-vision")
    assert found.table is None and found.mixing is None


@pytest.mark.property
def test_patches_are_what_the_map_reads() -> None:
    """W · patch + b equals the convolution, and patches put together are the picture."""
    subject = vision_subject(size=40, patch_size=16)
    found = read_patch_embedding(subject.module, subject.anatomy)
    assert found is not None and found.count == 4 and not found.covers
    pixels = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    conv = subject.module.get_submodule(found.module)
    with torch.no_grad():
        made = conv(pixels).flatten(2).mT
        weight, bias = subject.module.get_parameter(found.weight), subject.module.get_parameter(found.bias or "")
        assert torch.allclose(found.to_patches(pixels) @ weight.flatten(1).T + bias, made, atol=1e-5)
    back = found.to_pixels(found.to_patches(pixels), rest=0.5)
    assert torch.equal(back[..., :32, :32], pixels[..., :32, :32])
    assert bool((back[..., 32:, :] == 0.5).all()) and bool((back[..., :, 32:] == 0.5).all())


@pytest.mark.contract
def test_a_model_of_text_has_none() -> None:
    from gradleak.models import load_subject

    subject = load_subject(
        "random:bert", settings={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    )
    assert read_patch_embedding(subject.module, subject.anatomy) is None


@pytest.mark.contract
def test_the_module_is_left_as_it_was() -> None:
    subject = vision_subject()
    before = {name: value.clone() for name, value in subject.module.state_dict().items()}
    read_patch_embedding(subject.module, subject.anatomy)
    assert all(torch.equal(value, before[name]) for name, value in subject.module.state_dict().items())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in subject.module.modules())
    assert all(parameter.grad is None for parameter in subject.module.parameters())
