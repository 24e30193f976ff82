"""From what a user names (model, data, loss, share, noise, a captured update) to a prediction. Everything that can be
wrong is found before the laws are read. Must not run an attack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradleak.core.batch import Batch
from gradleak.core.errors import NotApplicableError, SpecError, UsageError
from gradleak.core.rng import derive
from gradleak.harness.captured.files import read_manifest
from gradleak.harness.captured.loading import load_observation
from gradleak.harness.influence import InfluenceForecast, predict_influence, read_perturbation
from gradleak.harness.request import defaults
from gradleak.harness.request.data import draw_batch, load_pool
from gradleak.harness.request.shares import parse_share
from gradleak.mechanics.client.trainer import DTYPES, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.theory.identifiability.bare_layer import BarePrediction, predict_bare
from gradleak.theory.identifiability.patches import PatchPrediction, predict_patches
from gradleak.theory.noise.meter import NoiseReading, measure_noise
from gradleak.theory.prediction.predict import predict
from gradleak.theory.prediction.stand_in import stand_in_batch
from gradleak.theory.prediction.types import Noise, Prediction


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictRequest:
    """What a user asks to be predicted, as it is typed; None is the default."""

    model: Any = None
    data: Path | None = None
    text_column: str | None = None
    batch_size: int | None = None
    seq_len: int | None = None
    loss: str | None = None
    share: str | None = None
    dtype: str | None = None
    noise_multiplier: float | None = None
    relative_std: float | None = None
    adapter_rank: int | None = None
    observation: Path | None = None
    influence: str | None = None
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Foreseen:
    """A prediction, and what a captured update itself shows, if one was given.

    Attributes:
        noise: the reading of the noise meter; None without an observation or where the meter does not apply.
        remark: why the meter does not apply, or empty.
        influence: how far the named perturbation moves a reconstruction; None where none was named.
    """

    prediction: Prediction | BarePrediction | PatchPrediction
    noise: NoiseReading | None = None
    remark: str = ""
    influence: InfluenceForecast | None = None

    def to_plain(self) -> dict[str, Any]:
        plain = self.prediction.to_plain()
        if self.noise is not None:
            reading = dataclasses.asdict(self.noise)
            reading["verdict"] = self.noise.verdict.name
            plain["observation"] = reading
        elif self.remark:
            plain["observation"] = {"not_applicable": self.remark}
        if self.influence is not None:
            plain["influence"] = dataclasses.asdict(self.influence)
        return plain


def foresee(request: PredictRequest) -> Foreseen:
    """Loads what ``request`` names and reads the laws for it.

    Raises:
        UsageError: with cause and remedy, for anything that does not fit.
        NotApplicableError: if no law applies to what is shared.
    """
    training, noise = _training(request), _noise(request)
    if request.influence is not None:
        read_perturbation(request.influence, training=training)
    if str(request.model).startswith("bare:"):
        return Foreseen(prediction=_bare(request))
    if request.data is not None and request.data.is_dir():
        raise NotApplicableError(
            f"{request.data} is a folder of images; the laws of `predict` are about tokens. Use `gradleak audit`."
        )
    manifest = None if request.observation is None else read_manifest(request.observation)
    loss = request.loss or (None if manifest is None else manifest.loss)
    classes = (
        {} if manifest is None or manifest.classes is None or manifest.classes < 2 else {"classes": manifest.classes}
    )
    model = request.model or (None if manifest is None else manifest.model) or defaults.MODEL
    subject = load_subject(model, loss=loss, settings=request.settings, seed=request.seed, **classes)
    if subject.modality == "image":
        return Foreseen(prediction=predict_patches(subject, records=request.batch_size or defaults.BATCH_SIZE))
    if manifest is not None:
        known = (manifest.batch_size, manifest.seq_len)
        request = dataclasses.replace(
            request, batch_size=request.batch_size or known[0], seq_len=request.seq_len or known[1]
        )
    batch, origin = _batch(request, subject)
    prediction = predict(
        subject,
        batch,
        training=training,
        noise=noise,
        origin=origin,
        adapter_rank=request.adapter_rank,
        seed=request.seed,
    )
    influence = (
        None
        if request.influence is None
        else predict_influence(subject, batch, request.influence, training=training, seed=request.seed)
    )
    if request.observation is None:
        return Foreseen(prediction=prediction, influence=influence)
    update = load_observation(request.observation, subject).update
    try:
        reading = measure_noise(update, subject, training=training)
    except NotApplicableError as error:
        return Foreseen(prediction=prediction, remark=str(error), influence=influence)
    return Foreseen(prediction=prediction, noise=reading, influence=influence)


def _bare(request: PredictRequest) -> BarePrediction:
    """The layer of the theory, of which the shape is all that is asked."""
    if request.data is not None or request.observation is not None or request.influence is not None:
        raise UsageError(
            f"The verdicts on {request.model} hold for all generic data; leave out --data, --observation and --influence."
        )
    length = {} if request.seq_len is None else {"seq_len": request.seq_len}
    settings = {**request.settings, **length}
    subject = load_subject(request.model, loss=request.loss, settings=settings, seed=request.seed)
    return predict_bare(subject, records=request.batch_size or defaults.BATCH_SIZE, seed=request.seed)


def _training(request: PredictRequest) -> LocalTraining:
    training = parse_share(request.share or defaults.SHARE)
    if request.dtype is None:
        return training
    if request.dtype not in DTYPES:
        raise SpecError(f"--dtype {request.dtype!r} is not known. Choose one of: {', '.join(DTYPES)}.")
    return dataclasses.replace(training, dtype=request.dtype)


def _noise(request: PredictRequest) -> Noise:
    if request.noise_multiplier is not None and request.relative_std is not None:
        raise UsageError("Give either --noise-multiplier or --relative-std: they are two units of the same noise.")
    if request.relative_std is not None:
        return Noise(unit="relative_std", value=request.relative_std)
    return Noise(value=request.noise_multiplier or 0.0)


def _batch(request: PredictRequest, subject: Subject) -> tuple[Batch, str]:
    size, length = request.batch_size or defaults.BATCH_SIZE, request.seq_len or defaults.MAX_LENGTH
    if request.data is None:
        longest = subject.anatomy.max_positions
        if request.seq_len is None and longest is not None:
            length = min(length, longest)
        batch = stand_in_batch(subject, batch_size=size, seq_len=length, seed=request.seed)
        return (
            batch,
            "a stand-in of distinct random tokens, the most a batch of this shape can hold; --data reads your own",
        )
    pool = load_pool(request.data, text_column=request.text_column)
    if pool.labels is not None and len(pool.label_names or ()) > subject.classes and subject.loss.labels_records:
        pool = dataclasses.replace(pool, labels=None, label_names=None)
    batch, _ = draw_batch(pool, subject, batch_size=size, max_length=length, rng=derive(request.seed, "batch", 0))
    return batch, f"{batch.size} of {pool.size} records of {pool.name}"
