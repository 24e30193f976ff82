"""Beyond the width: placement by the tables' gradients, joint evidence, and the test that settles a token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from gradleak.attacks.span import Span
from gradleak.core.attack import Clock, Status
from gradleak.core.batch import Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.harness.request.prepare import Request, prepare
from gradleak.harness.running.runner import run
from gradleak.harness.running.store import RunFolder, read_records
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.mechanics.embeddings.placement import place_tokens
from gradleak.models import Subject, read_anatomy
from gradleak.span.beyond.reassignment import Held, fill_anew
from gradleak.span.likelihood.co_membership import Kin
from gradleak.span.likelihood.reading import evidence
from gradleak.span.noise.record_search import _distinct
from gradleak.theory.noise.position_power import corner_dimension, most_placed

pytestmark = pytest.mark.oracle

RECORDS, LENGTH, WIDTH, VOCAB = 22, 8, 160, 4000


@pytest.mark.parametrize("tokens", [60, 120])
def test_tokens_are_placed_with_fewer_equations_than_tokens(tokens: int) -> None:
    rng = derive(tokens, "placement")
    rows = torch.randn(tokens, 96, generator=rng) * torch.rand(tokens, 1, generator=rng).add(0.1)
    truth = torch.randint(6, (tokens,), generator=rng)
    places = torch.zeros(6, 96).index_add(0, truth, rows)
    shares = place_tokens(rows, places)
    assert torch.allclose(shares.sum(dim=1), torch.ones(tokens, dtype=torch.float64))
    assert torch.equal(shares.argmax(dim=1), truth)


def test_placement_fails_where_half_the_tokens_exceed_the_equations() -> None:
    rng = derive(0, "placement")
    rows, truth = torch.randn(400, 32, generator=rng), torch.randint(6, (400,), generator=rng)
    shares = place_tokens(rows, torch.zeros(6, 32).index_add(0, truth, rows))
    assert float((shares.argmax(dim=1) == truth).double().mean()) < 0.9


@pytest.mark.parametrize(("width", "positions"), [(64, 2), (48, 6)])
def test_places_are_determined_as_far_as_the_law_says(width: int, positions: int) -> None:
    def right(tokens: int) -> float:
        rng = derive(tokens, "law", width)
        rows, truth = torch.randn(tokens, width, generator=rng), torch.randint(positions, (tokens,), generator=rng)
        shares = place_tokens(rows, torch.zeros(positions, width).index_add(0, truth, rows))
        return float((shares.argmax(dim=1) == truth).double().mean())

    most = most_placed(width, positions)
    assert right(int(0.85 * most)) == 1.0
    assert right(int(1.2 * most)) < 0.9


def test_a_corner_of_a_box_has_half_a_dimension() -> None:
    assert corner_dimension(2) == pytest.approx(0.5, abs=0.02)
    assert most_placed(768, 1) == 0


def _records(count: int, length: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens 0 … count · length − 1, those of one record near a signal of its own, all near a common one."""
    rng = derive(seed, "records")
    own, common = torch.randn(count, 1, width, generator=rng), 5 * torch.randn(width, generator=rng)
    rows = common + own + 0.7 * torch.randn(count, length, width, generator=rng)
    return rows.flatten(0, 1), torch.arange(count * length).view(count, length)


def test_tokens_of_one_record_are_kin_whatever_all_have_in_common() -> None:
    rows, records = _records(40, 4, 64, 0)
    kin = Kin.of(rows, torch.arange(160), 200)
    found = kin.weigh(records[:, :2], records[:, 2]).sum(dim=-1)
    assert torch.equal(found.argmin(dim=1), torch.arange(40))
    assert bool(
        (kin.weigh(records[:, :2], torch.tensor([199])) == 0).all()
    )  # of a token that does not occur nothing is known


def test_a_token_taken_from_its_own_record_goes_back() -> None:
    rows, records = _records(40, 6, 64, 1)
    kin = Kin.of(rows, torch.arange(240), 240)
    shares = torch.full((240, 6), 0.02, dtype=torch.float64)
    shares[records.flatten(), torch.arange(6).repeat(40)] = 0.9
    tokens, evidence = records.clone(), torch.full((40, 6), 9.0, dtype=torch.float64)
    tokens[3, 2], evidence[3, 2] = tokens[3, 3], 1.0  # held twice
    tokens[7, 4], evidence[7, 4] = tokens[8, 4], 2.0  # another record's
    held = Held(tokens=tokens, evidence=evidence)
    assert held.in_question(shares).nonzero().tolist() == [[3, 2], [7, 4]]
    found = fill_anew(held, shares, kin)
    assert torch.equal(found.tokens, records)
    assert bool((found.evidence > 0).all())


class _Looks(Clock):
    """Time that is spent after so many looks at the clock."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.left, self.seen = looks, 0

    def spent(self) -> bool:
        self.seen += 1
        return self.seen > self.left


def test_what_is_common_to_a_prefix_or_a_token_is_no_evidence() -> None:
    rng = derive(3, "evidence")
    weights = torch.randn(9, 9, 3, generator=rng, dtype=torch.float64) * 0.2
    weights[torch.arange(9), torch.arange(9)] -= 1.0
    rows, columns = (5 * torch.randn(9, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    shifted = weights + rows.unsqueeze(1) + columns.unsqueeze(0)
    assert torch.equal(evidence(shifted).argmax(dim=1), torch.arange(9))
    # Each layer on its own is misled by the common parts.
    assert not torch.equal(shifted[..., 0].argmin(dim=1), torch.arange(9))


def test_what_was_not_weighed_has_no_evidence() -> None:
    weights = torch.randn(4, 5, 2, generator=derive(0, "evidence"), dtype=torch.float64)
    weights[0, 3] = torch.nan
    found = evidence(weights)
    assert found[0, 3] == -torch.inf
    assert bool(found[1:].isfinite().all())


def test_sequences_that_share_most_with_others_are_dropped() -> None:
    rows = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 1, 1]])
    certain = torch.tensor([[0.0, 5, 5], [0.0, 9, 9], [0.0, 1, 1]])
    assert sorted(_distinct(rows, certain, 2).tolist()) == [1, 2]


@pytest.fixture(scope="module")
def crowded() -> tuple[Subject, Batch]:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_embd=WIDTH,
        n_inner=2 * WIDTH,
        n_layer=2,
        n_head=4,
        n_positions=32,
        initializer_range=0.045,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    module = transformers.GPT2ForSequenceClassification(config).eval()
    subject = Subject(
        name="gpt2", module=module, anatomy=read_anatomy(module), tokenizer=None, loss="classification", classes=2
    )
    rng = derive(1, "crowded")
    ids = torch.randint(3, VOCAB, (RECORDS, LENGTH), generator=rng)
    mask = torch.ones_like(ids, dtype=torch.bool)
    return subject, Batch(inputs=ids, mask=mask, labels=torch.randint(2, (RECORDS,), generator=rng))


def test_sentences_come_back_from_a_batch_larger_than_the_width(crowded: tuple[Subject, Batch]) -> None:
    subject, batch = crowded
    assert batch.mask.sum() > WIDTH
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "update"))
    facts = {"subject": subject, "batch_size": RECORDS, "seq_len": LENGTH}
    found = Span()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(0, "attack"))
    exact = {tuple(r.tolist()) for r in batch.records()} & {tuple(r.tolist()) for r in found.records}
    assert found.ordered
    assert len(exact) >= RECORDS // 2
    assert len(found.records) <= RECORDS


@pytest.mark.parametrize("looks", [0, 3, 60, 420])
def test_a_spent_budget_ends_the_search_with_the_best_so_far(crowded: tuple[Subject, Batch], looks: int) -> None:
    subject, batch = crowded
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "update"))
    facts = {"subject": subject, "batch_size": RECORDS, "seq_len": LENGTH}
    clock = _Looks(looks)
    observation = Observation(update=update, knowledge=Knowledge(facts=facts))
    found = Span()(observation, rng=derive(0, "attack"), clock=clock)
    assert found.status is Status.BUDGET_SPENT
    told, bag = torch.cat(found.records).unique(), batch.inputs.unique()
    assert bool(torch.isin(told, bag).all())
    assert len(told) > len(bag) // 2
    # What is left to do once the time is spent does not depend on how much was planned.
    assert clock.seen < looks + 6 * LENGTH


def test_a_full_space_is_told_from_noise(crowded: tuple[Subject, Batch]) -> None:
    subject, batch = crowded
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(0, "update"))
    facts = {"subject": subject, "batch_size": RECORDS, "seq_len": LENGTH}
    found = Span()(Observation(update=update, knowledge=Knowledge(facts=facts)), rng=derive(0, "attack"))
    assert "no noise does it" in found.message


def test_rounded_tables_that_leave_no_first_token_are_no_sentences(tmp_path: Path) -> None:
    settings = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    prepared = prepare(
        Request(
            model="random:gpt2",
            batch_size=4,
            max_length=16,
            attacks="span",
            defenses=("quantize(dtype=int8)",),
            settings=settings,
        )
    )
    with RunFolder(tmp_path / "run", prepared.plan) as store:
        run(prepared.plan, prepared.subject, prepared.source, store)
    rounded = read_records(tmp_path / "run")[1]
    assert rounded.status["name"] != "EXACT"
