"""The first blocks of a model are all that a span attack reads, and all of an 8-billion-parameter model that fits
on a small machine. Here is how a configuration is cut to its first blocks, and the record of what was left out, so that
nothing computed from a part is ever taken for the whole. Must not know checkpoints, attacks or updates.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from gradleak.core.errors import ModelError
from gradleak.models.configs import own_name
from gradleak.models.silence import quiet

_DEPTH = "num_hidden_layers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """How much of a model is here.

    Attributes:
        blocks, of_blocks: first blocks that are here, and all that the model has.
        parameters, of_parameters: numbers of scalars, likewise.
        skipped: shape by name of every parameter that was left out.
    """

    blocks: int
    of_blocks: int
    parameters: int
    of_parameters: int
    skipped: Mapping[str, tuple[int, ...]]

    def sentence(self) -> str:
        share = self.parameters / self.of_parameters
        return (
            f"Loaded the embeddings, the first {self.blocks} of {self.of_blocks} blocks and the head: "
            f"{_count(self.parameters)} of {_count(self.of_parameters)} parameters ({share:.0%}). "
            "Nothing here replays a client that trained the whole model."
        )


def depth_of(config: PreTrainedConfig) -> int:
    """The number of blocks that a configuration asks for. Raises ``ModelError`` if it does not say."""
    depth = getattr(config, own_name(config, _DEPTH), None)
    if not isinstance(depth, int):
        raise ModelError(
            f"A {config.model_type} configuration does not say its number of blocks, so it cannot be cut to the first few."
        )
    return depth


def cut_config(config: PreTrainedConfig, blocks: int) -> PreTrainedConfig:
    """A copy of ``config`` for its first ``blocks`` blocks; lists with one entry per block are cut to the same length.

    Raises:
        ModelError: unless ``blocks`` is from 1 to the number that there are.
    """
    depth = depth_of(config)
    if not 1 <= blocks <= depth:
        raise ModelError(f"The model has {depth} blocks; the first {blocks} cannot be loaded. Give 1 to {depth}.")
    short = copy.deepcopy(config)
    for key, value in config.to_dict().items():
        if isinstance(value, list | tuple) and len(value) == depth:
            setattr(short, key, value[:blocks])
    setattr(short, own_name(config, _DEPTH), blocks)
    return short


def shapes_without_weights(family: Any, config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Shape by name of every parameter of a model that is described, not built (no memory is taken)."""
    with torch.device("meta"), quiet():
        described: nn.Module = family._from_config(copy.deepcopy(config))
    return {name: tuple(parameter.shape) for name, parameter in described.named_parameters()}


def extent_of(module: nn.Module, whole: Mapping[str, tuple[int, ...]], *, blocks: int, of_blocks: int) -> Extent:
    """What ``module``, cut to its first ``blocks`` blocks, holds of the ``whole``."""
    here = {name: parameter.numel() for name, parameter in module.named_parameters()}
    skipped = {name: shape for name, shape in whole.items() if name not in here}
    loaded = sum(here.values())
    return Extent(
        blocks=blocks,
        of_blocks=of_blocks,
        parameters=loaded,
        of_parameters=loaded + sum(torch.Size(shape).numel() for shape in skipped.values()),
        skipped=skipped,
    )


def _count(scalars: int) -> str:
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if scalars >= size:
            return f"{scalars / size:.2f} {word}"
    return str(scalars)
