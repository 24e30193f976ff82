"""Most fine-tuning that is shared today is of low-rank adapters, so an audit must be able to put them on any model it
can read, where a user's own training would. The adapters are those of the peft library. Must not know attacks.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from gradleak.core.errors import ModelError, SpecError
from gradleak.models.anatomy import Anatomy, LinearMap
from gradleak.models.reading.anatomy_reader import read_anatomy
from gradleak.models.silence import one_line, quiet, seeded
from gradleak.models.subject import Subject

Targets = Literal["attention", "query_value", "all"]
TARGETS: tuple[Targets, ...] = ("attention", "query_value", "all")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRA:
    """Low-rank adapters: every target computes ``W x + (alpha / rank) B A x``, and only A and B are trained.

    Attributes:
        rank: rows of A.
        alpha: scale times rank; twice the rank if None.
        targets: ``attention`` (queries, keys, values), ``query_value``, or ``all`` linear maps of every block.
        b_std: standard deviation of the entries of B before training. 0 is the usual start (step 0), where the gradient
            of A is zero; anything larger stands for an adapter that was trained already.

    Raises:
        SpecError: for a value outside its range.

    Source: Hu et al., arXiv 2106.09685.
    """

    rank: int
    alpha: int | None = None
    targets: Targets = "attention"
    b_std: float = 0.0

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise SpecError(f"LoRA targets={self.targets!r} is not known. Choose one of: {', '.join(TARGETS)}.")
        if self.rank < 1 or self.b_std < 0 or (self.alpha is not None and self.alpha < 1):
            raise SpecError(f"LoRA needs rank ≥ 1, alpha ≥ 1 and b_std ≥ 0, got {self}.")


def with_lora(subject: Subject, lora: LoRA, *, seed: int) -> Subject:
    """The subject with adapters put into its module, in place; all other parameters are frozen.

    Raises:
        ModelError: if peft is not installed, or the model has adapters already or cannot take them.
    """
    if subject.anatomy.adapters:
        raise ModelError(f"{subject.name} has adapters already; leave 'lora' out of --share to audit those.")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError("LoRA needs the peft extra, which is not installed: pip install 'gradleak[peft]'.") from error
    maps = _targets(subject.anatomy, lora.targets)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or 2 * lora.rank,
        target_modules=[each.module for each in maps],
        fan_in_fan_out=any(each.input_first for each in maps),
    )
    with seeded(seed), quiet():
        try:
            module: nn.Module = inject_adapter_in_model(config, subject.module)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ModelError(f"{subject.name} takes no LoRA adapters: {one_line(error)}") from error
        module.eval()
        anatomy = read_anatomy(module)
        if lora.b_std:
            _warm(module, anatomy, lora.b_std)
    return dataclasses.replace(subject, module=module, anatomy=anatomy)


def _targets(anatomy: Anatomy, words: Targets) -> list[LinearMap]:
    if words == "all":
        return [each for block in anatomy.blocks for each in block.maps()]
    chosen = [block.attention_inputs for block in anatomy.blocks]
    if words == "query_value":
        if any(len(block.attention_inputs) != 3 for block in anatomy.blocks):
            raise ModelError(
                "This model does not make queries, keys and values by one map each. Use targets=attention."
            )
        chosen = [(maps[0], maps[2]) for maps in chosen]
    return [each for maps in chosen for each in maps]


def _warm(module: nn.Module, anatomy: Anatomy, std: float) -> None:
    with torch.no_grad():
        for adapter in anatomy.adapters:
            module.get_parameter(adapter.up.weight).normal_(std=std)


def without_wrapper(module: nn.Module) -> nn.Module:
    """The Hugging Face module inside a peft wrapper, adapters included; any other module as it is.

    Raises:
        ModelError: for an adapter that is no part of the module (a learned prompt).
    """
    configs: Any = getattr(module, "peft_config", None)
    getter: Any = getattr(module, "get_base_model", None)
    if configs is None or getter is None:
        return module
    if any(getattr(config, "is_prompt_learning", False) for config in configs.values()):
        raise ModelError("Learned prompts are not supported; gradleak audits adapters inside the module, such as LoRA.")
    return getter()
