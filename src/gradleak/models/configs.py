"""A model without weights is its configuration. Builds one by model type with the sizes that the command line
promises, and lets settings reach it by its own names or the standard aliases. Must not know tokenizers or anatomy.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from gradleak.core.errors import ModelError, UnknownNameError
from gradleak.core.specs import parse_value
from gradleak.models.silence import one_line

PUBLISHED_SIZE = frozenset({"gpt2", "bert"})
"""Model types whose default configuration is a small published model; every other type is built with SMALL."""

SMALL: Mapping[str, int] = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}

_WIDER = ("intermediate_size", "ffn_dim", "hidden_dim", "ffn_hidden_size", "n_inner")
"""The names under which configurations hold the width of the feed-forward part."""

_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
"""Ids of special tokens: a published value means nothing beside a borrowed tokenizer."""


def random_config(model_type: str, settings: Mapping[str, object]) -> PreTrainedConfig:
    """A configuration of ``model_type``: its published size for GPT-2 and BERT, ``SMALL`` for every other type.

    The feed-forward part is four times as wide as the model unless set; the number of key and value heads keeps the
    type's own ratio.

    Raises:
        ModelError: for an unknown type, or settings that do not fit each other.
        UnknownNameError: for a setting that the configuration does not have.
    """
    if model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(model_type, CONFIG_MAPPING, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ModelError(
            f"Unknown model type {model_type!r}. {hint}random:TYPE takes any model_type of the transformers library, "
            "for example gpt2, llama, qwen3, bert, roberta or vit."
        )
    family = CONFIG_MAPPING[model_type]
    published = _build(family, {})
    # Types whose layers differ refuse to tell a size for all of them; here it is asked only to see which sizes there are.
    published.allow_global_per_layer_attribute_access = True
    given = _resolve(published, settings)
    sizes = {} if model_type in PUBLISHED_SIZE else {own_name(published, key): size for key, size in SMALL.items()}
    chosen = {**{key: size for key, size in sizes.items() if hasattr(published, key)}, **given}
    chosen |= {key: value for key, value in _consistent(published, chosen).items() if key not in given}
    special = (key for key in _SPECIAL if getattr(published, key, None) is not None and key not in given)
    chosen |= {key: None if _may_be_none(published, key) else 0 for key in special}
    return _build(family, chosen)


def apply_settings(config: PreTrainedConfig, settings: Mapping[str, object]) -> None:
    """Sets values on the configuration of a pretrained model, in place. Raises as ``random_config`` does."""
    for key, value in _resolve(config, settings).items():
        try:
            setattr(config, key, value)
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise _unfit(config, error) from error


def own_name(config: PreTrainedConfig, key: str) -> str:
    """The configuration's own name of a standard key (``hidden_size`` is ``n_embd`` in GPT-2)."""
    if key == "intermediate_size":
        return next((name for name in _WIDER if hasattr(config, name)), key)
    return config.attribute_map.get(key, key)


def _resolve(config: PreTrainedConfig, settings: Mapping[str, object]) -> dict[str, Any]:
    plain = {
        key for key, value in config.to_dict().items() if value is None or isinstance(value, int | float | str | list)
    }
    known = (plain - {"architectures", "transformers_version", "model_type", "_name_or_path"}) | set(
        config.attribute_map
    )
    resolved: dict[str, Any] = {}
    for key, value in settings.items():
        name = own_name(config, key)
        if name not in known:
            raise UnknownNameError(f"setting of {config.model_type}", key, known)
        resolved[name] = parse_value(value) if isinstance(value, str) else value
    return resolved


def _consistent(published: PreTrainedConfig, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes that follow from a changed width or number of heads."""
    hidden_key, heads_key = own_name(published, "hidden_size"), own_name(published, "num_attention_heads")
    if hidden_key not in chosen and heads_key not in chosen:
        return {}
    hidden = chosen.get(hidden_key, getattr(published, hidden_key))
    heads = chosen.get(heads_key, getattr(published, heads_key))
    if not (isinstance(hidden, int) and isinstance(heads, int) and hidden > 0 and heads > 0 and hidden % heads == 0):
        raise ModelError(
            f"hidden_size={hidden} must be a positive multiple of num_attention_heads={heads}. Set both, for example "
            "--set hidden_size=128 --set num_attention_heads=4."
        )
    follows: dict[str, Any] = {}
    wide_key = own_name(published, "intermediate_size")
    if hidden_key in chosen and getattr(published, wide_key, None) is not None:
        follows[wide_key] = 4 * hidden
    for key in ("num_key_value_heads", "num_kv_heads"):
        grouped = getattr(published, key, None)
        follows[key] = _same_ratio(getattr(published, heads_key), grouped, heads) if grouped else heads
    if getattr(published, "head_dim", 0) is None or not hasattr(published, "kv_lora_rank"):
        # Latent attention has head sizes of its own, of which ``head_dim`` is only the rotated part.
        follows["head_dim"] = hidden // heads
    for key, value in (("rotary_dim", hidden // heads), ("word_embed_proj_dim", hidden)):
        if getattr(published, key, None) is not None:
            follows[key] = value
    return {key: value for key, value in follows.items() if key in published.to_dict()}


def _may_be_none(config: PreTrainedConfig, key: str) -> bool:
    """Whether the configuration's own type check lets a value be left open."""
    # Names in these annotations are imported only for type checkers, so they are read as they are written.
    written = {field.name: str(field.type) for field in dataclasses.fields(config)}
    return "None" in written.get(key, "None")


def _same_ratio(published_heads: int, published_kv: int, heads: int) -> int:
    wanted = max(1, heads * published_kv // published_heads)
    return next(count for count in range(wanted, 0, -1) if heads % count == 0)


def _build(family: type[PreTrainedConfig], arguments: Mapping[str, Any]) -> PreTrainedConfig:
    try:
        return family(**arguments)
    except (StrictDataclassError, TypeError, ValueError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        raise _unfit(family, error) from error


def _unfit(config: Any, error: Exception) -> ModelError:
    return ModelError(f"These settings do not make a {config.model_type} configuration: {one_line(error)}")
