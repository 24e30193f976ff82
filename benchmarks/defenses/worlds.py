"""The small worlds in which defenses are attacked: a LeNet on handwritten digits, and a two-block text encoder. Imported by
``sweep.py``; prints nothing.

Pictures: 8×8 digits of scikit-learn at 16×16 pixels, labels known, and the two small networks of the notes: ``lenet`` for
defenses on updates, ``tanh_net`` where a stage changes the model (with sigmoids even undefended matching fails there).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits
from torch import Tensor, nn

from gradleak.attacks.identification import Identification
from gradleak.core.attack import Attack, Status
from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.errors import DataError, ModelError
from gradleak.core.knowledge import Knowledge, Observation, Place
from gradleak.core.loss import CLASSIFICATION
from gradleak.core.rng import derive
from gradleak.core.stage import ModelStage
from gradleak.core.update import Update
from gradleak.harness.request import catalogue
from gradleak.harness.request.prepare import Prepared, Request, prepare
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.metrics._pixels import mean_squared_error
from gradleak.models import Anatomy, Subject, load_subject
from gradleak.models.anatomy import LinearMap

SIDE, CHANNELS, WIDE, CLASSES, SEVERAL = 16, 12, 64, 10, 4
PICTURE_ATTACKS = {
    "L2": "dlg(iterations=300)",
    "cosine": "inverting_gradients(iterations=400, total_variation=0.0001)",
}
TEXT_ATTACKS = {"support": "token_support", "span": "span", "signs": "sign_span"}
DISTANCES = ("likelihood", "cosine")
TEXT_MODEL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WORLD, WORLD_OF_SEVERAL = 180, 60
"""Candidates: the private picture among others of its class, about the number of the notes; fewer for several pictures."""


class Net(nn.Module):
    """Layers and a head, called as the models of the Hugging Face library are."""

    main_input_name = "pixel_values"

    def __init__(self, features: nn.Sequential, head: nn.Linear) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=SIDE, num_channels=1)
        self.features, self.head = features, head

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(self.features(pixel_values)))


def lenet(rng: torch.Generator) -> Net:
    """Three convolutions with sigmoids and one linear map; every weight from U(−1/2, 1/2)."""
    layers: list[nn.Module] = []
    for place, stride in enumerate((2, 2, 1)):
        layers += [nn.Conv2d(CHANNELS if place else 1, CHANNELS, 5, stride=stride, padding=2), nn.Sigmoid()]
    net = Net(nn.Sequential(*layers, nn.Flatten()), nn.Linear(CHANNELS * (SIDE // 4) ** 2, CLASSES))
    for parameter in net.parameters():
        parameter.data = torch.rand(parameter.shape, generator=rng) - 0.5
    return net


def tanh_net(rng: torch.Generator) -> Net:
    """Two convolutions, a linear map and the head, hyperbolic tangents, no biases; weights from U(−1, 1) / √fan-in."""
    layers = [
        nn.Conv2d(1, CHANNELS, 5, stride=2, padding=2, bias=False),
        nn.Tanh(),
        nn.Conv2d(CHANNELS, CHANNELS, 5, padding=2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(CHANNELS * (SIDE // 2) ** 2, WIDE, bias=False),
        nn.Tanh(),
    ]
    net = Net(nn.Sequential(*layers), nn.Linear(WIDE, CLASSES, bias=False))
    for parameter in net.parameters():
        parameter.data = (2 * torch.rand(parameter.shape, generator=rng) - 1) / math.sqrt(parameter[0].numel())
    return net


NETS: Mapping[str, Callable[[torch.Generator], Net]] = {"sigmoid": lenet, "tanh": tanh_net}


VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIT |= {"image_size": SIDE, "patch_size": 4, "num_channels": 1}


def picture_subject(net: str, seed: int) -> Subject:
    """One of ``NETS``, or a small vision transformer (``vit``), with fresh weights."""
    if net == "vit":
        return load_subject("random:vit", loss="classification", classes=CLASSES, settings=VIT, seed=seed)
    return subject_of(NETS[net](derive(seed, net)).eval(), net)


def subject_of(module: Net, name: str) -> Subject:
    """A network as a subject that classifies digits."""
    head = LinearMap(
        module="head",
        weight="head.weight",
        bias=None if module.head.bias is None else "head.bias",
        in_features=module.head.in_features,
        out_features=CLASSES,
        input_first=False,
    )
    anatomy = Anatomy(
        kind="vision",
        token_embedding=None,
        position_embedding=None,
        position_kind="none",
        blocks=(),
        head=head,
        tied=False,
        per_token=False,
        hidden_size=CHANNELS,
        vocab_size=0,
        max_positions=None,
    )
    return Subject(name=name, module=module, anatomy=anatomy, tokenizer=None, loss=CLASSIFICATION, classes=CLASSES)


@cache
def digits() -> tuple[Tensor, Tensor]:
    """All pictures, ``[n 1 16 16]`` in [0, 1], and their classes."""
    data: Any = load_digits()
    small = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear"), torch.tensor(data.target).long()


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One release of one private batch, with the facts of the adversary who knows the defense."""

    net: str
    batch: Batch
    update: Update
    facts: dict[str, Any]
    candidates: tuple[Tensor, ...]

    def observed(self, *, informed: bool) -> Observation:
        facts = {name: value for name, value in self.facts.items() if informed or name != "stages"}
        return Observation(update=self.update, knowledge=Knowledge(facts=facts))


def picture_scene(chain: str, seed: int, size: int, net: str = "", place: Place = "server") -> Scene:
    """``size`` digits, of different classes if several, through a small network and the chain.

    Args:
        net: ``sigmoid``, ``tanh`` or ``vit``; if empty, ``sigmoid``, or for stages that change the model ``tanh``, or ``vit``
            where these find no place in it.
        place: where the attacker reads.

    Raises:
        GradleakError: if the chain has no place here; ``DataError`` if it needs more records.
    """
    stages = catalogue.make_stages(chain)
    if not net and any(isinstance(stage, ModelStage) for stage in stages):
        try:
            return picture_scene(chain, seed, size, "tanh", place)
        except ModelError:
            return picture_scene(chain, seed, size, "vit", place)
    subject = picture_subject(net or "sigmoid", seed)
    channel = Channel(trainer=ClientTrainer(subject=subject, training=LocalTraining()), stages=stages).seen_from(place)
    pictures, classes = digits()
    order = torch.randperm(len(classes), generator=derive(seed, "digits"))
    own = [next(int(i) for i in order if int(classes[i]) == (seed + j) % CLASSES) for j in range(size)]
    batch = Batch(inputs=pictures[own], mask=torch.ones(size, dtype=torch.bool), labels=classes[own])
    same = {int(classes[place]) for place in own}
    others = [int(i) for i in order if int(classes[i]) in same and int(i) not in own]
    world = [*own, *others][: WORLD if size == 1 else WORLD_OF_SEVERAL]
    mixed = torch.randperm(len(world), generator=derive(seed, "order")).tolist()
    return _scene(subject.name, channel, batch, seed, {"labels": batch.labels}, [pictures[world[i]] for i in mixed])


@cache
def _texts() -> Prepared:
    return prepare(Request(model="random:bert", attacks="identification", max_length=16, settings=TEXT_MODEL))


def text_scene(chain: str, seed: int, size: int) -> Scene:
    """``size`` of the shipped messages through a small text encoder and the chain, and 19 other messages for each."""
    prepared = _texts()
    batches = [prepared.source.draw(derive(0, "batch", seed * SEVERAL + i)) for i in range(size)]
    records = [batch.records()[0] for batch, _ in batches]
    inputs = nn.utils.rnn.pad_sequence(records, batch_first=True)
    lengths = torch.tensor([len(record) for record in records])
    labels = torch.cat([batch.labels for batch, _ in batches])
    batch = Batch(inputs=inputs, mask=torch.arange(inputs.shape[1]) < lengths[:, None], labels=labels)
    others = [r for r in batches[0][1].records(prepared.subject, max_length=16) if not _among(r, records)][:19]
    world = [*records, *others]
    order = torch.randperm(len(world), generator=derive(seed, "order")).tolist()
    trainer = ClientTrainer(subject=prepared.subject, training=LocalTraining())
    channel = Channel(trainer=trainer, stages=catalogue.make_stages(chain))
    return _scene("text", channel, batch, seed, {"seq_len": inputs.shape[1]}, [world[i] for i in order])


def _scene(
    net: str, channel: Channel, batch: Batch, seed: int, facts: dict[str, Any], candidates: list[Tensor]
) -> Scene:
    deployed = channel.deployed()
    known = {"subject": deployed.subject, "trainer": deployed, "batch_size": batch.size, "stages": channel.stages}
    update = channel.observe(batch, derive(seed, "channel"))
    return Scene(net=net, batch=batch, update=update, facts=known | facts, candidates=tuple(candidates))


class MakeScene(Protocol):
    """``picture_scene`` or ``text_scene``."""

    def __call__(self, chain: str, seed: int, size: int) -> Scene: ...


def smallest_batch(make: MakeScene, chain: str) -> int:
    """1, or ``SEVERAL`` where the chain mixes or joins records. Raises ``GradleakError`` if neither is possible."""
    try:
        make(chain, 0, 1)
    except DataError:
        make(chain, 0, SEVERAL)
        return SEVERAL
    return 1


def decibels(scene: Scene, attack: str, seed: int, *, informed: bool) -> tuple[float, str]:
    """PSNR from the mean squared error of the best assignment of what came back to the private pictures."""
    found = _attack(attack)(scene.observed(informed=informed), rng=derive(seed, "attack"))
    if found.status is Status.NOT_APPLICABLE:
        return math.nan, found.message
    errors = [[mean_squared_error(truth, guess) for guess in found.records] for truth in scene.batch.inputs]
    chosen = _assigned(errors)
    return sum(-10 * math.log10(max(error, 1e-10)) for error in chosen) / len(chosen), found.status.name


def recall(scene: Scene, attack: str, seed: int, *, informed: bool) -> tuple[float, str]:
    """Share of the private tokens, counted as often as they occur, that the proposal holds."""
    found = _attack(attack)(scene.observed(informed=informed), rng=derive(seed, "attack"))
    if found.status is Status.NOT_APPLICABLE:
        return math.nan, found.message
    truth = torch.cat(list(scene.batch.records())).bincount(minlength=1)
    guess = torch.cat([torch.as_tensor(r).flatten() for r in found.records] or [torch.zeros(0, dtype=torch.long)])
    counted = guess.bincount(minlength=len(truth))[: len(truth)]
    return float(torch.minimum(truth, counted).sum() / truth.sum()), found.status.name


def rank(scene: Scene, distance: str, seed: int, *, informed: bool) -> float:
    """Mean rank of the private records in the attacker's list, those before it that are private too not counted."""
    facts = {"candidates": scene.candidates}
    seen = scene.observed(informed=informed)
    known = {**seen.knowledge.facts, **facts}
    attack = Identification(distance="cosine" if distance == "cosine" else "likelihood")
    ranking = attack(
        Observation(update=scene.update, knowledge=Knowledge(facts=known)), rng=derive(seed, "rank")
    ).ranking
    private = scene.batch.records()
    places = sorted(i for i, record in enumerate(ranking) if _among(record, private))
    return sum(place - before + 1 for before, place in enumerate(places)) / len(places)


def _attack(text: str) -> Attack:
    return catalogue.make_attacks(text)[0]


def _among(record: Tensor, others: Iterable[Tensor]) -> bool:
    return any(torch.equal(record, other) for other in others)


def _assigned(errors: list[list[float]]) -> list[float]:
    rows, columns = linear_sum_assignment(errors)
    return [errors[r][c] for r, c in zip(rows, columns, strict=True)]
