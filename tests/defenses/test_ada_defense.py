"""Faults of public code that the notes name, and the small tests that would have caught them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gradleak.core.batch import Batch
from gradleak.core.channel import Channel, Memory
from gradleak.core.errors import SpecError
from gradleak.core.rng import derive
from gradleak.core.stage import Client
from gradleak.core.update import Update
from gradleak.defenses.ada_defense import AdaDefense
from gradleak.defenses.censor import Censor, _orthogonal
from gradleak.defenses.dgc import DGC
from gradleak.defenses.low_rank import LowRank
from gradleak.defenses.outpost import Outpost
from gradleak.defenses.qsgd import QSGD
from gradleak.defenses.soteria import Soteria, unit_scores
from gradleak.mechanics.client.stage_noise import released_std
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.metrics._pixels import mean_squared_error
from gradleak.models import Subject, load_subject

pytestmark = pytest.mark.contract


@pytest.fixture(scope="module")
def subject() -> Subject:
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    return load_subject("random:vit", settings=settings)


@pytest.fixture(scope="module")
def batch(subject: Subject) -> Batch:
    pixels = torch.rand(3, *subject.pixel_shape, generator=derive(0, "pixels"))
    return Batch(inputs=pixels, mask=torch.ones(3, dtype=torch.bool), labels=torch.tensor([0, 1, 1]))


@pytest.fixture(scope="module")
def trainer(subject: Subject) -> ClientTrainer:
    return ClientTrainer(subject=subject, training=LocalTraining())


def client_of(trainer: ClientTrainer, batch: Batch, round: int = 0) -> Client:
    return Client(batch=batch, data=trainer.prepare(batch), trainer=trainer, round=round)


def scaled(update: Update, norm: float) -> Update:
    return update.map(lambda _, tensor: tensor * (norm / max(float(tensor.norm()), 1e-30)))


# CENSOR: orthogonal for every norm


@pytest.mark.parametrize("norm", [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3])
def test_censor_is_orthogonal_whatever_the_norm(trainer: ClientTrainer, batch: Batch, norm: float) -> None:
    plain = scaled(trainer.update(batch, derive(0, "x")), norm)
    released, _ = Censor(trials=1).apply(plain, client_of(trainer, batch), derive(1, "censor"))
    for name, tensor in plain.items():
        u, d = tensor.double().flatten(), released[name].double().flatten()
        assert abs(float(u @ d)) < 1e-6 * float(u.norm()) ** 2, name
        assert float(d.norm()) == pytest.approx(float(u.norm()), rel=1e-6)


@pytest.mark.parametrize("padded", [False, True], ids=["vectorized", "one by one"])
def test_censor_shares_the_best_of_its_trials(trainer: ClientTrainer, batch: Batch, padded: bool) -> None:
    """Of the twenty draws of one stream, the one with the lowest loss after the step, each computed by itself."""
    plain, client, stage = trainer.update(batch, derive(0, "x")), client_of(trainer, batch), Censor(lr=0.5)
    if padded:
        client = replace(client, data=replace(client.data, mask=torch.zeros_like(client.data.mask)))
    released, _ = stage.apply(plain, client, derive(1, "censor"))
    stream = derive(1, "censor")
    drawn = {name: _orthogonal(tensor, stage.trials, stream) for name, tensor in plain.items()}
    weights = {name: weight.detach() for name, weight in trainer.subject.trainable().items()}
    losses = [
        float(trainer.loss(client.data, {n: weights[n] - stage.lr * drawn[n][i] for n in weights}))
        for i in range(stage.trials)
    ]
    best = losses.index(min(losses))
    assert all(torch.equal(released[name], drawn[name][best]) for name in plain)
    assert max(losses) - min(losses) > 1e-3


def test_censor_surrogate_is_exact_at_the_truth_and_only_there(trainer: ClientTrainer, batch: Batch) -> None:
    plain = trainer.update(batch, derive(0, "x"))
    released, _ = Censor(trials=1).apply(plain, client_of(trainer, batch), derive(1, "censor"))
    both = {
        name: torch.stack([tensor, torch.roll(tensor.flatten(), 1).view_as(tensor)]) for name, tensor in plain.items()
    }
    found = Censor().surrogate(both, released)
    errors = sum((found[name] - released[name]).square().flatten(1).sum(1) for name in plain)
    assert float(errors[0]) < 1e-10 * released.norm() ** 2  # type: ignore[index]
    assert float(errors[1]) > 1e-4 * released.norm() ** 2  # type: ignore[index]


# OUTPOST: changes its input, differs between calls


def test_outpost_perturbs_and_never_twice_the_same(trainer: ClientTrainer, batch: Batch) -> None:
    plain, client, rng = trainer.update(batch, derive(0, "x")), client_of(trainer, batch), derive(1, "outpost")
    first, second = (Outpost().apply(plain, client, rng)[0] for _ in range(2))
    for name, tensor in plain.items():
        if float(trainer.subject.trainable()[name].detach().var(correction=0)) > 0:
            assert not torch.equal(first[name], tensor) and not torch.equal(first[name], second[name]), name


def test_outpost_noise_has_the_size_and_the_place_that_it_says(trainer: ClientTrainer, batch: Batch) -> None:
    plain, client = trainer.update(batch, derive(0, "x")), client_of(trainer, batch)
    stage = Outpost(prune=0.0, noise=1.0, phi=0.25)
    released, _ = stage.apply(plain, client, derive(1, "outpost"))
    name = max(plain, key=lambda each: plain[each].numel())
    noise = (released[name] - plain[name]).flatten()
    weights = {each: value.detach() for each, value in trainer.subject.trainable().items()}
    fisher = trainer.example_gradients(weights, client.data)[name].square().mean(0).flatten()
    touched = noise != 0
    assert int(touched.sum()) == round(0.25 * noise.numel())
    assert float(fisher[touched].min()) >= float(fisher[~touched].max())
    wanted = min(float(weights[name].var(correction=0)), 1.0)
    # A sample deviation of n normal draws is within 5/sqrt(2n) of 1 but for a chance of 6e-7.
    assert float(noise[touched].std()) == pytest.approx(wanted, rel=5 / math.sqrt(2 * int(touched.sum())))


def test_outpost_says_how_much_noise_it_adds_to_whoever_has_the_weights(trainer: ClientTrainer, batch: Batch) -> None:
    """Over all entries, the noise of a share φ of them has √φ times their deviation; without the weight it is unknown."""
    plain, client = trainer.update(batch, derive(0, "x")), client_of(trainer, batch)
    stage = Outpost(prune=0.0, phi=0.25)
    released, _ = stage.apply(plain, client, derive(1, "outpost"))
    name = max(plain, key=lambda each: plain[each].numel())
    noise, entries = released[name] - plain[name], plain[name].numel()
    told = stage.noise_std(released[name], trainer.subject.parameters()[name])
    # The mean square of n/4 normal draws is within 5·√(8/n) of its mean but for a chance of 1e-6.
    assert told == pytest.approx(float(noise.square().mean().sqrt()), rel=2.5 * math.sqrt(8 / entries))
    assert stage.noise_std(released[name]) is None
    assert released_std((stage,), name, released[name], trainer=trainer, records=3) == told
    assert released_std((stage,), name, released[name], trainer=None, records=3) is None


def test_outpost_names_the_places_of_the_largest_entries(trainer: ClientTrainer, batch: Batch) -> None:
    """For one record, a released zero is among its 60 % smallest entries: the truth is never counted against, others are."""
    one = Batch(inputs=batch.inputs[:1], mask=batch.mask[:1], labels=batch.labels[:1])
    plain = trainer.update(one, derive(0, "x"))
    released, _ = Outpost().apply(plain, client_of(trainer, one), derive(1, "outpost"))
    both = {n: torch.stack([t, torch.roll(t.flatten(), 1).view_as(t)]) for n, t in plain.items()}
    found = Outpost().surrogate(both, released)
    hidden = {name: tensor == 0 for name, tensor in released.items()}
    assert all(bool((found[name][0][hidden[name]] == 0).all()) for name in plain)
    counted = sum(float((found[name][1][hidden[name]] != 0).sum()) for name in plain)
    assert counted > 0.2 * sum(float(mask.sum()) for mask in hidden.values())


def test_outpost_becomes_rare(trainer: ClientTrainer, batch: Batch) -> None:
    """In round i a release is perturbed with probability 1/(1 + β i): 1 in round 0; 1/3 of 90 draws ± 4 deviations."""
    plain = trainer.update(batch, derive(0, "x"))
    counts = {}
    for round in (0, 16):
        client, rng = client_of(trainer, batch, round), derive(round, "rare")
        released = [Outpost(noise=0.0).apply(plain, client, rng)[0] for _ in range(90)]
        counts[round] = sum(any(not torch.equal(each[n], plain[n]) for n in plain) for each in released)
    assert counts[0] == 90
    assert abs(counts[16] - 30) <= 4 * math.sqrt(90 * (1 / 3) * (2 / 3))


# AdaDefense: a sign quantizer in its first round; one memory per client


def test_ada_defense_is_a_sign_quantizer_in_the_first_round(trainer: ClientTrainer, batch: Batch) -> None:
    g = torch.randn(10_000, generator=derive(0, "g")) * 0.01
    g[:100] = 0.0
    released, _ = AdaDefense().apply(Update({"a": g}), client_of(trainer, batch), derive(0, "x"))
    large = g.abs() > 1e-4
    assert float((released["a"] - 1e-3 * g.sign())[large].abs().max()) < 1e-5
    assert bool((released["a"][:100] == 0).all())


@pytest.mark.parametrize("variant", ["adam", "adagrad", "yogi"])
def test_ada_defense_follows_its_recursion(variant: str, trainer: ClientTrainer, batch: Batch) -> None:
    """Four rounds against the scalar recursion written out in Python floats."""
    stage, m, v, state = AdaDefense(variant=variant), 0.0, 0.0, {}  # type: ignore[arg-type]
    for t, g in enumerate((0.3, -0.2, 0.05, 0.0)):
        client = Client(batch=batch, data=trainer.prepare(batch), trainer=trainer, round=t, state=state)
        released, state = stage.apply(Update({"a": torch.tensor([g], dtype=torch.float64)}), client, derive(0, "x"))
        m = 0.9 * m + 0.1 * g
        if variant == "adam":
            v = 0.999 * v + 0.001 * g * g
        elif variant == "adagrad":
            v = v + g * g
        else:
            v = v - 0.001 * g * g * (1 if v > g * g else -1 if v < g * g else 0)
        lr = 1e-3 * math.sqrt(1 - 0.999 ** (t + 1)) / (1 - 0.9 ** (t + 1))
        assert float(released["a"]) == pytest.approx(lr * m / (math.sqrt(v) + 1e-8), rel=1e-12)


def test_ada_defense_keeps_clients_apart(trainer: ClientTrainer, batch: Batch) -> None:
    """The conformance tests run this for every defense; here the public fault itself: a shared memory would differ."""
    channel = Channel(trainer=trainer, stages=(AdaDefense(),))
    other = Batch(inputs=batch.inputs.flip(0), mask=batch.mask, labels=torch.tensor([1, 0, 0]))
    first, memory = channel.client(batch, Memory(), derive(0, "x"))
    assert memory.states[0], "the memory is there to be seen"
    second, _ = channel.client(batch, memory, derive(0, "x"))
    mixed = channel.client(batch, channel.client(other, memory, derive(0, "x"))[1], derive(0, "x"))[0]
    assert any(not torch.equal(second[name], mixed[name]) for name in second)
    assert all(torch.equal(first[n], channel.client(batch, Memory(), derive(0, "y"))[0][n]) for n in first)


# DGC: the residual delays, it does not remove


def test_dgc_releases_all_in_the_end(trainer: ClientTrainer, batch: Batch) -> None:
    stage, state, sent, given = DGC(fraction=0.9, momentum=0.0), {}, torch.zeros(50), torch.zeros(50)
    rng = derive(0, "updates")
    for t in range(7):
        client = Client(batch=batch, data=trainer.prepare(batch), trainer=trainer, round=t, state=state)
        u = torch.randn(50, generator=rng)
        released, state = stage.apply(Update({"a": u}), client, rng)
        assert int((released["a"] != 0).sum()) == 5
        sent, given = sent + released["a"], given + u
    torch.testing.assert_close(sent + state["residual.a"], given)


def test_dgc_warms_up() -> None:
    stage = DGC(fraction=0.999, warmup=4)
    assert [stage.fraction_in(t) for t in range(6)] == [0.75, 0.9375, 0.984375, 0.99609375, 0.999, 0.999]


# QSGD, low rank, Soteria


def test_qsgd_is_unbiased() -> None:
    """The mean of 4,000 roundings; each entry within five standard errors (false alarm below 6e-5 for 100 entries)."""
    u, rng, stage = torch.randn(100, generator=derive(0, "u")), derive(1, "q"), QSGD(levels=3)
    released = torch.stack([stage.apply(Update({"a": u}), rng)["a"] for _ in range(4000)])
    step = float(u.abs().max()) / 3
    levels = released / step
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert bool(((released.mean(0) - u).abs() <= 5 * (step / 2) / math.sqrt(4000)).all())


def test_low_rank_is_the_best_approximation() -> None:
    """Eckart and Young: the squared error is the sum of the squared singular values that are left out."""
    u = torch.randn(7, 5, generator=derive(0, "u"), dtype=torch.float64)
    released = LowRank(rank=2).apply(Update({"a": u}), derive(0, "x"))["a"]
    sizes = torch.linalg.svdvals(u)
    torch.testing.assert_close((u - released).square().sum(), sizes[2:].square().sum())
    assert int(torch.linalg.matrix_rank(released)) == 2
    torch.testing.assert_close(LowRank(rank=2).surrogate({"a": u[None]}, {"a": released})["a"][0], released)


def test_low_rank_leaves_the_attacker_all_but_what_is_outside_both_spaces() -> None:
    """Of 9 × 6 entries (9 − 2)(6 − 2) are lost, so 26 = 2 (9 + 6 − 2) directions of the candidate still show."""
    u = torch.randn(9, 6, generator=derive(0, "u"), dtype=torch.float64)
    released = {"a": LowRank(rank=2).apply(Update({"a": u}), derive(0, "x"))["a"]}
    directions = {"a": torch.eye(54, dtype=torch.float64).view(54, 9, 6)}
    seen = LowRank(rank=2).surrogate(directions, released)["a"].flatten(1)
    torch.testing.assert_close(seen @ seen, seen)  # a projection
    assert int(torch.linalg.matrix_rank(seen)) == 26


def test_soteria_prunes_the_columns_that_it_says(trainer: ClientTrainer, batch: Batch) -> None:
    plain, client = trainer.update(batch, derive(0, "x")), client_of(trainer, batch)
    released, _ = Soteria(fraction=0.4).apply(plain, client, derive(0, "y"))
    head = trainer.subject.anatomy.head
    assert head is not None
    gone = (released[head.weight] == 0).all(0)
    assert int(gone.sum()) == int(0.4 * head.in_features)
    scores = unit_scores(trainer.subject, client.data)
    assert float(scores[gone].max()) <= float(scores[~gone].min())
    assert all(torch.equal(released[name], plain[name]) for name in plain if name != head.weight)


def test_soteria_scores_agree_with_finite_differences(subject: Subject, batch: Batch) -> None:
    """Two units of one record: ‖∂r/∂x‖ from central differences along every pixel."""
    head = subject.anatomy.head
    assert head is not None
    one = Batch(inputs=batch.inputs[:1].double(), mask=batch.mask[:1], labels=batch.labels[:1])
    module = subject.module.double()
    try:
        seen: list[torch.Tensor] = []
        handle = module.get_submodule(head.module).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
        with torch.no_grad():
            subject.logits(pixels=one.inputs)
            eye = torch.eye(one.inputs[0].numel(), dtype=torch.float64).view(-1, *one.inputs.shape[1:]) * 1e-3
            for shift in eye:
                subject.logits(pixels=one.inputs + shift)
                subject.logits(pixels=one.inputs - shift)
        handle.remove()
        slopes = torch.stack([(up - down) / 2e-3 for up, down in zip(seen[1::2], seen[2::2], strict=True)])
        data = ClientTrainer(subject=subject, training=LocalTraining()).prepare(one)
        torch.testing.assert_close(unit_scores(subject, data), slopes.norm(dim=0) / seen[0].abs(), rtol=1e-4, atol=1e-5)
    finally:
        module.float()


# Metrics: PSNR is made from the mean squared error, not from its root


def test_psnr_comes_from_the_mean_squared_error() -> None:
    from gradleak.core.metric import Comparison
    from gradleak.metrics.psnr import PSNR

    truth = torch.full((1, 8, 8), 0.5)
    pair = (truth, truth + 0.1)
    shown = Comparison(
        truth=pair[:1], guess=pair[1:], aligned=(pair,), extras=(), ordered=True, decoys=(), special_ids=frozenset(),
        vocab_size=0, decode=lambda _: "",
    )  # fmt: skip
    assert PSNR().values(shown) == [pytest.approx(20.0, abs=1e-4)], "10 log10(1 / 0.1²), not 10 log10(1 / 0.1)"
    assert mean_squared_error(*pair) == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdaDefense(beta1=1.0),
        lambda: AdaDefense(scale=0.0),
        lambda: Censor(trials=0),
        lambda: DGC(fraction=1.0),
        lambda: DGC(fraction=0.5, warmup=-1),
        lambda: Outpost(phi=1.5),
        lambda: QSGD(levels=0),
        lambda: LowRank(rank=0),
        lambda: Soteria(fraction=1.0),
    ],
)
def test_arguments_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(SpecError, match="out of range"):
        make()  # type: ignore[operator]
