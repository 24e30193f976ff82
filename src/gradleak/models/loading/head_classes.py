"""Which class of the transformers library has the head for a loss. Must not know weights or anatomy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

from gradleak.core.errors import ModelError
from gradleak.core.loss import CAUSAL_LM, CLASSIFICATION, LOSSES, MASKED_LM, Loss

_HEADS: Mapping[Loss, tuple[Any, ...]] = {
    CLASSIFICATION: (AutoModelForSequenceClassification, AutoModelForImageClassification),
    CAUSAL_LM: (AutoModelForCausalLM,),
    MASKED_LM: (AutoModelForMaskedLM,),
}


def _mapped(auto: Any, config: PreTrainedConfig) -> Any | None:
    """The model class that an auto class would build for this configuration, or None."""
    if type(config) not in auto._model_mapping:
        return None
    found = auto._model_mapping[type(config)]
    # Some types have several heads of one kind; the first is the plain one.
    return found[0] if isinstance(found, tuple) else found


def family_for(config: PreTrainedConfig, loss: Loss) -> Any:
    """The model class for a loss. Raises ``ModelError`` with the losses there are."""
    for auto in _HEADS[loss]:
        found = _mapped(auto, config)
        if found is not None:
            return found
    has = [name for name, other in LOSSES.items() if any(_mapped(auto, config) is not None for auto in _HEADS[other])]
    raise ModelError(
        f"A {config.model_type} model has no head for the loss {loss.name!r}. It has: {', '.join(has) or 'none that is supported'}."
    )


def own_loss(config: PreTrainedConfig) -> Loss:
    """The loss that a checkpoint was saved with a head for, else classification."""
    return next((loss for loss in LOSSES.values() if has_trained_head(config, loss)), CLASSIFICATION)


def has_trained_head(config: PreTrainedConfig, loss: Loss) -> bool:
    """True if the checkpoint was saved from the class that this loss would use."""
    found = [_mapped(auto, config) for auto in _HEADS[loss]]
    return any(each is not None and each.__name__ in (config.architectures or ()) for each in found)
