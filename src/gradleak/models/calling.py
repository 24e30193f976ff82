"""The one way a Hugging Face module is run here, on embeddings or pixels, so that what the tracer reads is what
training computes. Must not know losses, attacks or anatomy.
"""

from __future__ import annotations

import inspect
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradleak.core.errors import ModelError


def reads_pixels(module: nn.Module) -> bool:
    """True for a vision model: its declared main input is pixels."""
    return getattr(module, "main_input_name", "input_ids") == "pixel_values"


def image_shape(module: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that a vision model takes."""
    config: Any = module.config
    height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    return config.num_channels, height, width


def run_module(
    module: nn.Module,
    inputs: Float[Tensor, "batch seq model"] | Float[Tensor, "batch channels height width"],
    mask: Bool[Tensor, "batch seq"] | None = None,
) -> Any:
    """Runs ``module`` and returns its output object, without key-value cache.

    Args:
        inputs: token embeddings as ``inputs_embeds``, or pixels for a vision model.
        mask: which tokens are real; all if None.
    """
    if reads_pixels(module):
        return module(pixel_values=inputs)
    arguments: dict[str, Any] = {"inputs_embeds": inputs, "attention_mask": None if mask is None else mask.long()}
    if "use_cache" in inspect.signature(module.forward).parameters:
        arguments["use_cache"] = False
    return module(**arguments)


def token_embedding(module: nn.Module) -> nn.Module:
    """The module that turns token ids into embeddings. Raises ``ModelError`` if there is none."""
    getter: Any = getattr(module, "get_input_embeddings", None)
    found = None if getter is None else getter()
    if not isinstance(found, nn.Module):
        raise ModelError(
            f"{type(module).__name__} does not say where its token embedding is. "
            "Pass a Hugging Face PreTrainedModel, or give your module a get_input_embeddings() method."
        )
    return found


def weight_of(module: nn.Module) -> Tensor:
    """The weight tensor of an embedding or a linear map. Raises ``ModelError`` if there is none."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise ModelError(f"{type(module).__name__} has no weight tensor, so it is no plain table or linear map.")
    return weight


def backbone(module: nn.Module) -> nn.Module:
    """The module below the head, or ``module`` itself if it has none."""
    return getattr(module, getattr(module, "base_model_prefix", ""), module)
