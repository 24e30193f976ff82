"""A checkpoint is foreign data. Safetensors only, no remote code, and broken weights are refused before any work.
Must not know attacks or data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from gradleak.core.errors import ModelError, UnsafeFileError
from gradleak.core.loss import Loss
from gradleak.models.calling import reads_pixels
from gradleak.models.configs import apply_settings
from gradleak.models.extent import Extent, cut_config, depth_of, extent_of, shapes_without_weights
from gradleak.models.loading.checks import assemble
from gradleak.models.loading.head_classes import family_for, has_trained_head, own_loss
from gradleak.models.loading.shards import only_needed
from gradleak.models.running.attention import DIFFERENTIABLE
from gradleak.models.silence import one_line, quiet, seeded
from gradleak.models.subject import Subject
from gradleak.models.tokenizer import Tokenizer, fallback_tokenizer, has_tokenizer, load_tokenizer

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


def load_checkpoint(
    name: str,
    source: str,
    *,
    loss: Loss | None,
    classes: int,
    settings: Mapping[str, object],
    tokenizer: Tokenizer | None,
    seed: int,
    first_blocks: int | None = None,
) -> Subject:
    """Loads a folder or a hub id; the arguments and errors are those of ``load_subject``."""
    local = _is_local(source)
    if local:
        _check_folder(Path(source))
    config = _read_config(name, source)
    wanted = loss or own_loss(config)
    apply_settings(config, settings)
    family = family_for(config, wanted)
    if not wanted.predicts_vocabulary and not has_trained_head(config, wanted):
        config.num_labels = classes
    module, extent = _read_blocks(name, source, family, config, seed, first_blocks, local=local)
    if tokenizer is None and not reads_pixels(module):
        own = has_tokenizer(Path(source)) if local else True
        tokenizer = load_tokenizer(source, name=name) if own else fallback_tokenizer(config.vocab_size)
    return assemble(name, module, wanted, tokenizer, normalization=_read_normalization(source), extent=extent)


def _read_blocks(
    name: str, source: str, family: Any, config: PreTrainedConfig, seed: int, first_blocks: int | None, *, local: bool
) -> tuple[nn.Module, Extent | None]:
    """The module, or its first blocks with what they leave out."""
    if first_blocks is None or first_blocks == depth_of(config):
        return _read_weights(name, source, family, config, seed), None
    short, whole = cut_config(config, first_blocks), shapes_without_weights(family, config)
    skipped = whole.keys() - shapes_without_weights(family, short).keys()
    with only_needed(Path(source), skipped) if local else nullcontext(source) as place:
        module = _read_weights(name, str(place), family, short, seed)
    return module, extent_of(module, whole, blocks=first_blocks, of_blocks=depth_of(config))


def _read_normalization(source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel from the checkpoint's image preprocessor; empty if there is none."""
    file = Path(source) / "preprocessor_config.json"
    if not file.is_file():
        return (), ()
    plain = json.loads(file.read_text(encoding="utf-8"))
    if not plain.get("do_normalize", True):
        return (), ()
    return tuple(plain.get("image_mean", ())), tuple(plain.get("image_std", ()))


def _is_local(source: str) -> bool:
    path = Path(source)
    if path.is_dir():
        return True
    if source.startswith((".", "/")) or source.count("/") > 1 or path.exists():
        what = "is a file, not a folder" if path.is_file() else "does not exist"
        raise ModelError(
            f"The model folder {source!r} {what}. Pass a folder with config.json and model.safetensors, a hub id "
            "(owner/name), 'minilm', or 'random:TYPE'."
        )
    return False


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"The folder {str(folder)!r} has no config.json, so it holds no Hugging Face model.")
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern))
    if pickled:
        raise UnsafeFileError(
            f"The weights in {str(folder)!r} are pickled ({pickled[0]}); opening them can run any code, so they are "
            "refused. Convert them once, where you trust them: saveload_checkpoint(..., safe_serialization=True) of "
            "transformers, or safetensors.torch.save_file."
        )
    raise ModelError(f"The folder {str(folder)!r} holds no weights. It needs model.safetensors beside config.json.")


def _read_config(name: str, source: str) -> PreTrainedConfig:
    try:
        with quiet():
            plain, _ = PreTrainedConfig.get_config_dict(source)
            if "auto_map" in plain:
                raise UnsafeFileError(
                    f"The model {name!r} brings its own code (auto_map in config.json), which is never run. If its "
                    "model_type is one of the transformers library, delete auto_map from a local copy and load that."
                )
            return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ModelError(f"The model {name!r} cannot be loaded: {_reason(error)}") from error


def _read_weights(name: str, source: str, family: Any, config: PreTrainedConfig, seed: int) -> nn.Module:
    try:
        with seeded(seed), quiet():
            module, report = family.from_pretrained(
                source,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation=DIFFERENTIABLE,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, AttributeError) as error:
        raise ModelError(f"The weights of {name!r} cannot be loaded: {_reason(error)}") from error
    parameters = set(dict(module.named_parameters()))
    missing = sorted(parameters & set(report["missing_keys"]))
    if 2 * len(missing) > len(parameters):
        raise ModelError(
            f"The weights of {name!r} do not belong to its config.json: {len(missing)} of {len(parameters)} parameters "
            f"are missing, {missing[0]!r} among them."
        )
    return module


def _reason(error: BaseException) -> str:
    """A library's message, without its advice on how to be online."""
    text = str(error)
    if "connect to" in text or "offline" in text.lower():
        return (
            "there is no such local folder, and the Hugging Face hub cannot be reached (or the id is not in its cache). "
            "Check the path, or download the model first."
        )
    return one_line(error)
