"""What a language prior may do and what not: nothing where the update decides; where noise leaves it open, evidence and prior are added
in nats that are true on both sides, and what is owed to the prior is counted."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gradleak.attacks.span import Span
from gradleak.core.attack import Clock, Reconstruction, Status
from gradleak.core.batch import Batch
from gradleak.core.errors import SpecError
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.defenses.gaussian import Gaussian
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.probing.model import Model
from gradleak.mechanics.subspace.noise_level import noise_in
from gradleak.models import Subject, load_subject
from gradleak.span.language.language_model import Uniform, load_prior
from gradleak.span.likelihood.gradient_likelihood import GradientLikelihood, gradient_likelihoods
from gradleak.span.likelihood.marginal import Evidence, Signal
from gradleak.span.with_prior.attribution import agreeing
from gradleak.span.with_prior.posterior import Problem, maximize_posterior

RECORDS, LENGTH = 2, 8
SETTINGS = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 260,
    "max_position_embeddings": 32,
    "initializer_range": 0.05,
}
PRIORS = ("uniform", "public")


@cache
def world(seed: int) -> tuple[Subject, Batch]:
    """A small byte-level decoder, and pieces of the shipped messages (which no prior is fitted on)."""
    subject = load_subject("random:gpt2", loss="causal-lm", settings=SETTINGS, seed=seed)
    with resources.files("gradleak").joinpath("data", "messages.csv").open(encoding="utf-8") as file:
        texts = [row["text"].encode("ascii", "ignore") for row in csv.DictReader(file)]
    rng = derive(seed, "messages")
    chosen = [texts[i] for i in torch.randperm(len(texts), generator=rng)[:RECORDS].tolist()]
    starts = [int(torch.randint(len(text) - LENGTH, (1,), generator=rng)) for text in chosen]
    ids = torch.tensor([list(text[s : s + LENGTH]) for text, s in zip(chosen, starts, strict=True)])
    return subject, Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=ids)


def released(seed: int, noise: float) -> dict[str, Tensor]:
    subject, batch = world(seed)
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed, "training"))
    return dict(Gaussian(relative_std=noise).apply(update, derive(seed, "noise")) if noise else update)


def attacked(seed: int, noise: float, prior: str | None, **facts: object) -> Reconstruction:
    subject, _ = world(seed)
    known = {"subject": subject, "batch_size": RECORDS, "seq_len": LENGTH, **facts}
    observation = Observation(update=released(seed, noise), knowledge=Knowledge(facts=known))  # type: ignore[arg-type]
    return Span(prior=prior)(observation, rng=derive(seed, "attack"), clock=Clock())


def same(one: Reconstruction, other: Reconstruction) -> bool:
    alike = len(one.records) == len(other.records) and all(map(torch.equal, one.records, other.records))
    return alike and one.status is other.status and one.statistics == other.statistics


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_where_the_update_decides_a_prior_changes_nothing(noise: float, prior: str) -> None:
    plain = attacked(0, noise, None)
    assert plain.status is Status.CONVERGED and plain.ordered
    assert same(plain, attacked(0, noise, prior))


@pytest.mark.parametrize("prior", PRIORS)
def test_what_is_certified_stays_certified(prior: str) -> None:
    subject = load_subject("random:gpt2", loss="classification", settings=SETTINGS)
    batch = replace(world(0)[1], labels=torch.arange(RECORDS))
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    facts = {"subject": subject, "trainer": trainer, "batch_size": RECORDS, "seq_len": LENGTH}
    observation = Observation(update=trainer.update(batch, derive(0)), knowledge=Knowledge(facts=facts))
    plain, with_prior = (Span(prior=each)(observation, rng=derive(0)) for each in (None, prior))
    assert plain.status is Status.EXACT and same(plain, with_prior)


def evidence_of(seed: int, noise: float) -> Evidence:
    subject, update = world(seed)[0], released(seed, noise)
    model = Model(subject=subject)
    first = GradientLikelihood.of(update, subject.anatomy.first_maps(), lambda name: noise_in(update[name]))
    assert first is not None
    behind = gradient_likelihoods(update, model, lambda name: noise_in(update[name]), blocks=2)
    return Evidence(signals=tuple(map(Signal.of, (first, *behind))), model=model)


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_evidence_is_the_projection_onto_the_inputs(noise: float) -> None:
    """By least squares, place by place; and grown row by row it is the same."""
    evidence, ids = evidence_of(0, noise), world(0)[1].inputs
    rows = [[seen[i] for seen in evidence.rows(ids)] for i in range(RECORDS)]
    told = 0.0
    for place, signal in enumerate(evidence.signals):
        inputs = torch.cat([record[place] for record in rows]).numpy()
        target = signal.directions.numpy()
        left = target - inputs.T @ np.linalg.lstsq(inputs.T, target, rcond=1e-6)[0]
        told += ((target**2).sum() - (left**2).sum()) / 2 - np.linalg.matrix_rank(inputs, tol=1e-3) * signal.price
    assert evidence.together(rows) == pytest.approx(told, rel=1e-6)
    grown = 0.0
    for place, given in enumerate(evidence.given(rows[:1])):
        own = torch.zeros(1, 0, given.frame.shape[0], dtype=torch.float64)
        for row in rows[1][place]:
            gain, unit = given.extend(row.view(1, 1, -1), own)
            grown, own = grown + float(gain), torch.cat((own, unit[0].unsqueeze(1)), dim=1)
    assert grown == pytest.approx(evidence.together(rows) - evidence.together(rows[:1]), rel=1e-6)


def excess(boldness: Callable[[Signal, GradientLikelihood], Signal] | None = None) -> tuple[float, float, float]:
    """Claimed less true, in standard errors clustered by batch, of: which of 24 tokens stands there, all else being right."""
    differences, claims, truth = [], [], []
    for noise in (2.0, 3.0):
        for seed in range(20, 32):
            evidence, ids, rng = evidence_of(seed, noise), world(seed)[1].inputs, derive(seed, "tried")
            if boldness is not None:
                subject, update = world(seed)[0], released(seed, noise)
                places = gradient_likelihoods(
                    update, Model(subject=subject), lambda n, u=update: noise_in(u[n]), blocks=2
                )
                behind = tuple(map(boldness, evidence.signals[1:], places))
                evidence = replace(evidence, signals=(evidence.signals[0], *behind))
            rows = [[seen[i] for seen in evidence.rows(ids)] for i in range(RECORDS)]
            total = 0.0
            for i in range(RECORDS):
                given = evidence.given(rows[:i] + rows[i + 1 :])
                for p in range(LENGTH - 1):
                    tried = ids[i].repeat(24, 1)
                    tried[1:, p] = torch.randint(256, (23,), generator=rng)
                    value = sum(place.score(seen) for place, seen in zip(given, evidence.rows(tried), strict=True))
                    sure = torch.as_tensor(value).softmax(0)
                    right = float(tried[int(sure.argmax()), p] == ids[i, p])
                    claims.append(float(sure.max()))
                    truth.append(right)
                    total += claims[-1] - right
            differences.append(total)
    gap = float(np.sum(differences) / np.sqrt(np.square(differences).sum()))
    return gap, float(np.mean(claims)), float(np.mean(truth))


def test_nats_of_evidence_are_nearly_true() -> None:
    """A little bold where noise is this strong: .83 are claimed and .75 right, within three clustered standard errors."""
    gap, _, right = excess()
    assert 0.3 < right < 0.97, "the cases must hold right and wrong tokens"
    assert gap < 3.0


def test_evidence_without_shrinkage_would_be_bold() -> None:
    """Directions as strong as they look, noise included."""

    def bold(signal: Signal, place: GradientLikelihood) -> Signal:
        left, size, _ = torch.linalg.svd(place.gradient.double(), full_matrices=False)
        count = signal.directions.shape[1]
        return replace(signal, directions=left[:, :count] * size[:count])

    assert excess(bold)[0] > 3.0


def test_the_prior_brings_tokens_that_the_update_left_out() -> None:
    """A record without its true token among the options is found with the prior's help, and not without."""
    evidence, ids = evidence_of(0, 0.3), world(0)[1].inputs
    prior = load_prior("public", world(0)[0])
    likely = [int(prior.following(ids[:1, :p])[0].topk(4).indices.eq(ids[0, p]).any()) for p in range(LENGTH)]
    place = max(p for p in range(1, LENGTH - 1) if likely[p])
    options = [ids[:, p].unique() for p in range(LENGTH)]
    options[place] = torch.tensor([0])
    start = [tuple(row[: LENGTH - 1]) for row in ids.tolist()]
    start[0] = (*start[0][:place], 0, *start[0][place + 1 :])
    problem = Problem(evidence=evidence, prior=prior, options=tuple(options), closed=False, records=RECORDS)
    true = [row[: LENGTH - 1] for row in ids]
    found = maximize_posterior(problem, Clock(), start=start)
    assert agreeing(found.records, true) == RECORDS * (LENGTH - 1)
    without = maximize_posterior(replace(problem, prior=Uniform(vocab_size=260)), Clock(), start=start)
    assert agreeing(without.records, true) < RECORDS * (LENGTH - 1)
    assert found.log_evidence > without.log_evidence


def test_a_language_model_without_opinion_changes_nothing(tmp_path: Path) -> None:
    """Its last normalization is zero, so every token is alike; it goes the whole way that a real one goes."""
    module = load_subject("random:gpt2", loss="causal-lm", settings=SETTINGS).module
    assert isinstance(module, PreTrainedModel)
    with torch.no_grad():
        for name in ("transformer.ln_f.weight", "transformer.ln_f.bias"):
            module.get_parameter(name).zero_()
    module.save_pretrained(tmp_path)
    blank, uniform = attacked(1, 1.0, str(tmp_path)), attacked(1, 1.0, "uniform")
    assert uniform.status is Status.UNDECIDED and uniform.statistics["proposed_tokens"] > LENGTH
    assert all(map(torch.equal, blank.records, uniform.records))
    assert blank.statistics["tokens_due_to_prior"] == 0


def test_a_prior_adds_no_token_that_the_tables_exclude() -> None:
    """Where the token table is trained, noise leaves open where tokens stand, not which there are."""
    subject = load_subject("random:gpt2", loss="classification", settings=SETTINGS)
    batch = replace(world(2)[1], labels=torch.arange(RECORDS))
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(2))
    released = Gaussian(relative_std=0.3).apply(update, derive(2, "noise"))
    facts = {"subject": subject, "batch_size": RECORDS, "seq_len": LENGTH}
    found = Span(prior="public")(Observation(update=released, knowledge=Knowledge(facts=facts)), rng=derive(2))
    assert found.status is Status.UNDECIDED and "tokens_due_to_prior" in found.statistics
    assert set(torch.cat(found.records).tolist()) <= set(batch.inputs.flatten().tolist())


@pytest.mark.slow
def test_a_wrong_prior_claims_nothing(tmp_path: Path) -> None:
    """Fitted on reversed text: whatever it proposes is undecided, and what is owed to it is counted against the update alone."""
    text = resources.files("gradleak").joinpath("data", "public.txt").read_text(encoding="utf-8")
    backward = tmp_path / "backward.txt"
    backward.write_text("\n".join(line[::-1] for line in text.splitlines()), encoding="utf-8")
    for seed in range(50, 54):
        for noise in (0.3, 1.0):
            alone, wrong = attacked(seed, noise, "uniform"), attacked(seed, noise, str(backward))
            assert wrong.status in (Status.UNDECIDED, alone.status)
            if wrong.status is Status.UNDECIDED:
                count = sum(map(len, wrong.records))
                owed = count - agreeing(wrong.records, alone.records)
                assert wrong.statistics["proposed_tokens"] == count
                assert wrong.statistics["tokens_due_to_prior"] == owed
                assert wrong.statistics["log_evidence"] <= alone.statistics["log_evidence"] + 30


def test_a_prior_that_does_not_exist_is_refused_before_any_work() -> None:
    with pytest.raises(SpecError, match=r"span: '/nowhere/model' is no language prior.*nothing is downloaded"):
        Span(prior="/nowhere/model")
