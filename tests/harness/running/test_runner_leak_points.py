"""Where the adversary stands decides which stages have acted: at the server, after local training, during it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.channel import Channel
from gradleak.core.rng import derive
from gradleak.core.update import Update
from gradleak.harness.request.catalogue import make_stages
from gradleak.harness.request.prepare import Request, prepare
from gradleak.harness.running.runner import run
from gradleak.harness.running.store import RunFolder
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.contract

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
STEPS = LocalTraining(share="delta", steps=3, lr=0.1)
SDP = "fed_sdp(max_norm=0.01, noise_multiplier=10.0)"
CDP = "fed_cdp(max_norm=1.0, noise_multiplier=10.0)"


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load_subject("random:vit", settings={**TINY, "image_size": 8, "patch_size": 4})


@pytest.fixture(scope="module")
def batch(subject: Subject) -> Batch:
    pixels = torch.rand(2, *subject.pixel_shape, generator=derive(0, "pixels"))
    return Batch(inputs=pixels, mask=torch.ones(2, dtype=torch.bool), labels=torch.tensor([0, 1]))


def seen(subject: Subject, batch: Batch, chain: str, place: str) -> Update:
    channel = Channel(trainer=ClientTrainer(subject=subject, training=STEPS), stages=make_stages(chain))
    return channel.seen_from(place).observe(batch, derive(1, "channel"))  # type: ignore[arg-type]


def apart(one: Update, other: Update) -> float:
    return Update({name: tensor - other[name] for name, tensor in one.items()}).norm() / other.norm()


def test_noise_on_the_release_does_nothing_inside_the_client(subject: Subject, batch: Batch) -> None:
    plain = {place: seen(subject, batch, "none", place) for place in ("server", "after_training", "during_training")}
    assert apart(seen(subject, batch, SDP, "server"), plain["server"]) > 1
    for place in ("after_training", "during_training"):
        assert apart(seen(subject, batch, SDP, place), plain[place]) == 0.0
        assert apart(seen(subject, batch, f"{SDP}+secure_aggregation(number=2)", place), plain[place]) == 0.0


def test_noise_in_every_step_is_there_at_every_place(subject: Subject, batch: Batch) -> None:
    for place in ("server", "after_training", "during_training"):
        assert apart(seen(subject, batch, CDP, place), seen(subject, batch, "none", place)) > 1, place


def test_during_training_is_the_gradient_of_one_step(subject: Subject, batch: Batch) -> None:
    gradient = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(1, "channel"))
    assert apart(seen(subject, batch, "none", "during_training"), gradient) == 0.0
    assert apart(seen(subject, batch, "none", "after_training"), seen(subject, batch, "none", "server")) == 0.0


@pytest.mark.parametrize(
    ("threat", "place", "share", "leaks", "guaranteed"),
    [
        ("honest_server", "server", "delta", False, True),
        ("after_training", "after_training", "delta", True, False),
        ("during_training", "during_training", "gradient", True, False),
    ],
)
def test_an_audit_says_where_it_looked_and_claims_only_what_acted_there(
    tmp_path: Path, threat: str, place: str, share: str, leaks: bool, guaranteed: bool
) -> None:
    request = Request(
        model="random:bert",
        attacks="token_support",
        defenses=(SDP,),
        share="delta(steps=2, lr=0.01)",
        threat=threat,
        max_length=8,
        settings=TINY,
    )
    prepared = prepare(request)
    with RunFolder(tmp_path / "run", prepared.plan) as store:
        run(prepared.plan, prepared.subject, prepared.source, store)
        defended = next(record for record in store.records if record.defenses)
    assert defended.knowledge["place"] == place and defended.scenario["share"]["type"] == share
    assert (defended.privacy["epsilon"] is not None) == guaranteed
    assert (float(defended.scores["token_recall"]["value"]) == 1.0) == leaks
