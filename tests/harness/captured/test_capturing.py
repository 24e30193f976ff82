"""Updates are captured from whatever loops and libraries hand over, and facts that cannot be are refused all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradleak
from gradleak.core.errors import DataError, UsageError
from gradleak.harness.captured.capturing import as_tensors
from gradleak.harness.captured.files import read_manifest
from gradleak.harness.captured.tensors import read_tensors


@pytest.mark.contract
def test_tensors_come_as_they_are(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    update: dict[str, Any] = {
        "none": None,
        "parameter": nn.Parameter(torch.ones(2)),
        "numpy": np.ones((2, 3), dtype=">f4")[:, ::-1],
        "list": [[1.0, 2.0]],
        "sparse": torch.eye(3).to_sparse(),
        "first": shared[:4],
        "second": shared[2:],
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "counter": torch.tensor(3),
        "bf16": torch.ones(2, dtype=torch.bfloat16),
    }
    gradleak.capture(update, tmp_path / "seen")
    stored = read_tensors(tmp_path / "seen")
    assert set(stored) == set(update) - {"none", "counter"}
    assert torch.equal(stored["sparse"], torch.eye(3))
    assert torch.equal(stored["second"], shared[2:])
    assert torch.equal(stored["transposed"], torch.arange(6.0).reshape(2, 3).T)
    assert stored["bf16"].dtype == torch.bfloat16


@pytest.mark.errors
@pytest.mark.parametrize(
    ("update", "words"),
    [
        ([torch.ones(1)], "positions mean nothing"),
        ({}, "empty"),
        ({"w": None}, "backward"),
        ({"w": "text"}, "is no tensor"),
        ({"w": [[1.0], [1.0, 2.0]]}, "is no tensor"),
        ({3: torch.ones(1)}, "Names of an update"),
        ({"w": np.array(["a"])}, "not of numbers"),
        ({"w": torch.ones(1, device="meta")}, "meta"),
        ({"w": torch.ones(1, dtype=torch.complex64)}, "complex"),
    ],
)
def test_what_is_no_update_is_refused(update: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        as_tensors(update)


@pytest.mark.errors
def test_all_facts_that_cannot_be_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused:
        gradleak.capture(
            {"w": torch.ones(1)},
            tmp_path / "seen",
            batch_size=-3,
            seq_len=0,
            classes=2,
            labels=torch.tensor([0, 5]),
            mask=torch.ones(1, 2, 3, dtype=torch.bool),
        )
    for words in ("batch_size=-3", "seq_len=0", "label 5 is out of range", "mask must have shape"):
        assert words in str(refused.value)
    with pytest.raises(DataError, match="whole numbers"):
        gradleak.capture({"w": torch.ones(1)}, tmp_path / "seen", labels=torch.tensor([0.5]))
    with pytest.raises(DataError, match="Pad its rows"):
        gradleak.capture({"w": torch.ones(1)}, tmp_path / "seen", labels=[[1, 2], [3]])
    assert not (tmp_path / "seen").exists()


@pytest.mark.contract
def test_frameworks_hand_over_gradients_and_deltas() -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(DataError, match="has a gradient"):
        gradleak.capture.from_gradients(layer)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(torch.ones(1, 3)).sum().backward()
    assert set(gradleak.capture.from_gradients(layer)) == {"weight", "bias"}
    with pytest.raises(DataError, match="clone it"):
        gradleak.capture.from_delta(layer.state_dict(), layer)
    torch.optim.SGD([layer.weight], lr=0.5).step()
    delta = gradleak.capture.from_delta(before, layer)
    assert set(delta) == {"weight"}
    torch.testing.assert_close(delta["weight"], torch.full((2, 3), -0.5))
    with pytest.raises(DataError, match="do not hold the same tensors"):
        gradleak.capture.from_delta({"weight": before["weight"]}, layer)
    with pytest.raises(DataError, match="had shape"):
        gradleak.capture.from_delta({**before, "bias": torch.ones(5)}, layer)


@pytest.mark.contract
def test_decay_of_sgd_that_is_written_out_is_kept(tmp_path: Path) -> None:
    gradleak.capture({"w": torch.ones(1)}, tmp_path / "a", share="delta(lr=0.1, weight_decay=0.01)")
    gradleak.capture({"w": torch.ones(1)}, tmp_path / "b", share="delta(lr=0.1)")
    assert (read_manifest(tmp_path / "a").sgd_decay, read_manifest(tmp_path / "b").sgd_decay) == (0.01, None)
