"""The chain in its order: on candidates of transformers, on three priors, and with real releases for the attack."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.errors import UsageError
from gradleak.mechanics.client.gram import gram_matrix
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.privacy.bounds import bound_chain
from gradleak.privacy.bounds.bayes import Rate
from gradleak.privacy.bounds.candidates import Candidates, Matrix

pytestmark = pytest.mark.oracle

MODELS = {"gpt2": "causal-lm", "bert": "classification", "llama": "causal-lm"}
PRIORS = ("sentences", "token", "attribute")
LEVELS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
TOKENS = 8


def subject_of(model: str) -> Subject:
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300}
    return load_subject(f"random:{model}", loss=MODELS[model], settings=settings, seed=0)


def candidates_of(subject: Subject, prior: str) -> Batch:
    rng = torch.Generator().manual_seed(0)
    if prior == "sentences":
        ids = torch.randint(10, 250, (48, TOKENS), generator=rng)
    else:
        ids = torch.randint(10, 250, (1, TOKENS), generator=rng).repeat(48 if prior == "token" else 4, 1)
        ids[:, 3] = torch.arange(20, 20 + ids.shape[0])
    labels = ids if subject.loss.name == "causal-lm" else torch.zeros(ids.shape[0], dtype=torch.int64)
    return Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=labels)


def clipped(gram: torch.Tensor) -> tuple[Matrix, float]:
    """The Gram matrix of the gradients clipped at their median norm, in units of it."""
    norms = gram.diagonal().sqrt()
    clip = float(norms.median())
    scale = (clip / norms).clamp(max=1.0) / clip
    return (gram * torch.outer(scale, scale)).numpy(), clip


def released_hits(subject: Subject, batch: Batch, clip: float, z: float, trials: int, rng: np.random.Generator) -> int:
    """An attack that never sees the Gram matrix: whole gradients, noise in every entry, nearest candidate."""
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    rows = []
    for k in range(batch.size):
        one = slice(k, k + 1)
        update = trainer.update(
            Batch(inputs=batch.inputs[one], mask=batch.mask[one], labels=batch.labels[one]), torch.Generator()
        )
        rows.append(torch.cat([t.flatten() for t in update.values()]).numpy())
    whole = np.stack(rows)
    whole *= np.minimum(1, clip / np.linalg.norm(whole, axis=1))[:, None]
    truth = rng.integers(len(whole), size=trials)
    noise = rng.standard_normal((trials, whole.shape[1]), dtype=np.float32)
    scores = (whole[truth] + np.float32(z * clip) * noise) @ whole.T - (whole**2).sum(1) / 2
    return int((scores.argmax(1) == truth).sum())


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("prior", PRIORS)
def test_no_violation_over_models_priors_and_noise(model: str, prior: str) -> None:
    """54 cells; Bayes at 99 % from 20,000 draws, the attack from 150 real releases a cell."""
    subject = subject_of(model)
    batch = candidates_of(subject, prior)
    names = ClientTrainer(subject=subject, training=LocalTraining()).names()
    gram, clip = clipped(gram_matrix(subject, batch, names))
    candidates = Candidates.uniform(gram).merged()
    assert candidates.count == batch.size
    rng = np.random.default_rng(1)
    previous = math.inf
    for z in LEVELS:
        step = bound_chain.rung(candidates, z, rng, trials=20_000, confidence=0.99)
        measured = Rate.of(released_hits(subject, batch, clip, z, 150, rng), 150, 0.99)
        assert bound_chain.violations(step, {"nearest candidate": measured}) == ()
        assert measured.high >= step.best.success.low, "the nearest candidate is the optimal attack for a uniform prior"
        assert candidates.kappa <= step.instance <= step.mechanism <= step.approximate + 1e-12
        assert step.mechanism <= previous
        previous = step.mechanism


def test_gaps_are_those_of_the_note_in_kind() -> None:
    """Whole sentences: both caps near the optimum. One token: the mechanism bound is pessimistic, and says so."""
    subject = subject_of("gpt2")
    names = ClientTrainer(subject=subject, training=LocalTraining()).names()
    rng = np.random.default_rng(2)
    found = {}
    for prior in ("sentences", "token"):
        gram, _ = clipped(gram_matrix(subject, candidates_of(subject, prior), names))
        found[prior] = bound_chain.rung(Candidates.uniform(gram), 0.2, rng)
    assert (
        found["token"].mechanism / found["token"].instance > found["sentences"].mechanism / found["sentences"].instance
    )
    assert found["token"].instance < 0.9 * found["token"].mechanism
    pessimistic = bound_chain.rung(Candidates.uniform(0.99 + 0.01 * np.eye(48)), 0.2, rng)
    assert any("pessimistic" in text for text in pessimistic.advice())


def test_releases_add_up_in_the_square() -> None:
    candidates = Candidates.uniform(np.eye(16))
    one = bound_chain.rung(candidates, 0.5, np.random.default_rng(0))
    four = bound_chain.rung(candidates, 1.0, np.random.default_rng(0), releases=4)
    assert (one.mechanism, one.instance, one.epsilon) == (four.mechanism, four.instance, four.epsilon)
    assert one.best == four.best


def test_a_violation_stops_with_the_places_to_look_in_order() -> None:
    step = bound_chain.rung(Candidates.uniform(np.eye(64)), 1.0, np.random.default_rng(0))
    found = bound_chain.violations(step, {"exact_match of span": Rate.of(90, 100, 0.99)})
    assert [each.upper for each in found][:3] == ["the Bayes-optimal rate", "the instance bound", "the mechanism bound"]
    text = found[0].diagnosis()
    places = [text.index(word) for word in ("VIOLATION", "prior:", "view:", "noise:", "bound code:")]
    assert places == sorted(places)
    assert bound_chain.violations(step, {"guess": Rate.of(1, 100, 0.99)}) == ()


def test_a_weak_attack_is_named() -> None:
    step = bound_chain.rung(Candidates.uniform(np.eye(64)), 0.1, np.random.default_rng(0))
    assert bound_chain.is_weak(Rate.of(0, 100, 0.99), step)
    assert not bound_chain.is_weak(Rate.of(99, 100, 0.99), step)


def test_bad_releases() -> None:
    with pytest.raises(UsageError, match="at least once"):
        bound_chain.rung(Candidates.uniform(np.eye(2)), 1.0, np.random.default_rng(0), releases=0)
