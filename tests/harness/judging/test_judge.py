"""What holds for the judge whatever was recovered: order does not matter, nothing is counted twice, bounds are kept."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradleak.core.attack import Reconstruction, Status
from gradleak.core.batch import IGNORED, Batch
from gradleak.core.errors import DataError
from gradleak.harness.judging.judge import Judgement, all_metrics, compare, require_scorable, score
from gradleak.harness.running.cell import evidence
from gradleak.models.tokenizer import ByteTokenizer, pad_rows

pytestmark = pytest.mark.property

TOKENIZER = ByteTokenizer()
BEGIN, END, PAD = TOKENIZER.begin_id, TOKENIZER.end_id, TOKENIZER.pad_id
METRICS = all_metrics()
DECOYS = tuple(torch.tensor([BEGIN, *text.encode(), END]) for text in ("aab bc", "c a b", "zz", "bca"))

letters = st.sampled_from(list(b"abc "))
texts = st.lists(letters, min_size=1, max_size=7)
proposals = st.lists(st.sampled_from([*b"abc ", BEGIN, END, PAD]), max_size=9)
seeds = st.integers(0, 2**20)


def text_batch(contents: list[list[int]]) -> Batch:
    ids, mask = pad_rows([[BEGIN, *content, END] for content in contents], PAD)
    return Batch(inputs=ids, mask=mask, labels=torch.zeros(len(contents), dtype=torch.int64))


def proposal(records: list[list[int]] | list[Tensor], *, ordered: bool = True) -> Reconstruction:
    tensors = tuple(r if isinstance(r, Tensor) else torch.tensor(r, dtype=torch.int64) for r in records)
    return Reconstruction(records=tensors, ordered=ordered, status=Status.CONVERGED)


def judge(reconstruction: Reconstruction, batch: Batch, decoys: tuple[Tensor, ...] = DECOYS) -> Judgement:
    tokenizer = TOKENIZER if batch.modality == "text" else None
    return score(reconstruction, batch, tokenizer=tokenizer, decoys=decoys, metrics=METRICS)


def image_batch(images: Tensor) -> Batch:
    size = len(images)
    return Batch(inputs=images, mask=torch.ones(size, dtype=torch.bool), labels=torch.zeros(size, dtype=torch.int64))


def images(count: int, seed: int, *, levels: int = 3) -> Tensor:
    """Pictures of few gray levels, so that ties occur."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, levels, (count, 1, 4, 4), generator=rng).float() / (levels - 1)


@given(st.lists(texts, min_size=1, max_size=4), st.lists(proposals, max_size=6), seeds)
@settings(deadline=None, max_examples=25)
def test_order_of_records_does_not_change_text_scores(
    contents: list[list[int]], guesses: list[list[int]], seed: int
) -> None:
    source, size = random.Random(seed), len(contents)
    committed, rest = guesses[:size], guesses[size:]
    shuffled = source.sample(contents, size)
    reshuffled = source.sample(committed, len(committed)) + source.sample(rest, len(rest))
    before = judge(proposal(guesses), text_batch(contents))
    after = judge(proposal(reshuffled), text_batch(shuffled))
    assert before.scores == after.scores
    assert (before.spurious, before.precision, before.exact) == (after.spurious, after.precision, after.exact)


@given(st.lists(texts, min_size=1, max_size=4), proposals, seeds)
@settings(deadline=None, max_examples=25)
def test_order_does_not_change_the_scores_of_a_bag(contents: list[list[int]], bag: list[int], seed: int) -> None:
    source = random.Random(seed)
    before = judge(proposal([bag], ordered=False), text_batch(contents))
    shuffled = text_batch(source.sample(contents, len(contents)))
    after = judge(proposal([source.sample(bag, len(bag))], ordered=False), shuffled)
    assert before.scores == after.scores
    assert set(before.scores) == {"token_recall", "identification_rank", "exact_match"}
    assert before.scores["exact_match"].value == 0.0
    assert (before.spurious, before.precision, before.exact) == (after.spurious, after.precision, after.exact)


@given(st.integers(1, 4), st.integers(0, 5), seeds)
@settings(deadline=None, max_examples=25)
def test_order_of_records_does_not_change_image_scores(size: int, proposed: int, seed: int) -> None:
    source = random.Random(seed)
    truth, guess = images(size, seed), list(images(proposed, seed + 1))
    decoys = tuple(images(3, seed + 2))
    order = source.sample(range(size), size)
    committed, rest = guess[:size], guess[size:]
    reordered = source.sample(committed, len(committed)) + rest
    before = judge(proposal(guess), image_batch(truth), decoys)
    after = judge(proposal(reordered), image_batch(truth[order]), decoys)
    assert before.scores == after.scores


@given(st.lists(texts, min_size=1, max_size=4))
@settings(deadline=None, max_examples=25)
def test_the_truth_is_perfect_everywhere(contents: list[list[int]]) -> None:
    batch = text_batch(contents)
    judgement = judge(proposal(list(batch.records())), batch)
    assert {"token_recall", "token_accuracy", "exact_match"} <= set(judgement.scores)
    for name, found in judgement.scores.items():
        if name != "identification_rank":
            assert found.value == METRICS[name].best, name
    assert (judgement.spurious, judgement.precision, judgement.exact) == (0, 1.0, True)
    bag = judge(proposal([torch.cat(batch.records())], ordered=False), batch)
    assert (bag.scores["token_recall"].value, bag.spurious, bag.exact) == (1.0, 0, True)


@given(st.integers(1, 4), seeds)
@settings(deadline=None, max_examples=25)
def test_the_true_pictures_are_perfect_everywhere(size: int, seed: int) -> None:
    truth = images(size, seed, levels=50)
    judgement = judge(proposal(list(truth.flip(0))), image_batch(truth), tuple(images(4, seed + 1, levels=50)))
    assert set(judgement.scores) == {"mse", "psnr", "ssim", "identification_rank"}
    for name, found in judgement.scores.items():
        assert found.value == pytest.approx(METRICS[name].best, abs=1e-9), name
    assert (judgement.spurious, judgement.precision, judgement.exact) == (0, 1.0, True)


@given(st.lists(texts, min_size=1, max_size=4), st.lists(proposals, max_size=6), st.booleans())
@settings(deadline=None, max_examples=25)
def test_values_and_intervals_stay_within_bounds(
    contents: list[list[int]], guesses: list[list[int]], bag: bool
) -> None:
    records = [[token for guess in guesses for token in guess]] if bag else guesses
    judgement = judge(proposal(records, ordered=not bag), text_batch(contents))
    for name, found in judgement.scores.items():
        assert found.low <= found.value <= found.high
        assert 1 <= found.n <= len(contents)
        if METRICS[name].bounded:
            assert 0.0 <= found.low <= found.high <= 1.0
    ranks = judgement.scores["identification_rank"]
    assert 1.0 <= ranks.value <= len(judgement.comparison.decoys) + 1
    assert judgement.spurious >= 0
    assert judgement.precision is None or 0.0 <= judgement.precision <= 1.0


@given(
    st.lists(texts, min_size=1, max_size=4),
    st.lists(proposals, min_size=1, max_size=4),
    st.lists(proposals, min_size=1),
)
@settings(deadline=None, max_examples=25)
def test_extras_are_counted_and_change_no_score(
    contents: list[list[int]], guesses: list[list[int]], extras: list[list[int]]
) -> None:
    """Not even extras that hold the truth: the judge does not pick the best of many."""
    batch = text_batch(contents)
    filled = (guesses * len(contents))[: len(contents)]
    before = judge(proposal(filled), batch)
    after = judge(proposal([*filled, *extras, *contents]), batch)
    assert after.scores == before.scores
    assert after.spurious == len(extras) + len(contents)


@given(st.lists(texts, min_size=1, max_size=4), st.lists(proposals, max_size=7))
@settings(deadline=None, max_examples=25)
def test_no_proposal_is_used_twice(contents: list[list[int]], guesses: list[list[int]]) -> None:
    found = compare(proposal(guesses), text_batch(contents), tokenizer=TOKENIZER)
    used = [guess for guess in found.guess if guess is not None]
    assert len(used) == min(len(contents), len(guesses))
    stripped = [tuple(token for token in guess if token not in TOKENIZER.special_ids) for guess in guesses]
    assert Counter(tuple(r.tolist()) for r in (*used, *found.extras)) == Counter(stripped)


@given(st.lists(texts, min_size=1, max_size=4), proposals)
@settings(deadline=None, max_examples=25)
def test_no_token_of_a_bag_is_used_twice(contents: list[list[int]], bag: list[int]) -> None:
    judgement = judge(proposal([bag], ordered=False), text_batch(contents))
    content = Counter(token for token in bag if token not in TOKENIZER.special_ids)
    wanted = Counter(token for record in contents for token in record)
    comparison = judgement.comparison
    covered = sum(
        value * len(record)
        for value, record in zip(METRICS["token_recall"].values(comparison), comparison.truth, strict=True)
    )
    assert covered == pytest.approx((content & wanted).total(), abs=1e-9)
    assert judgement.spurious == content.total() - (content & wanted).total()


def test_an_attack_that_found_nothing_scores_zero_and_one_that_failed_has_no_score() -> None:
    batch = text_batch([list(b"abc"), list(b"b a")])
    nothing = judge(Reconstruction(status=Status.NOTHING_FOUND), batch)
    rates = {name: found.value for name, found in nothing.scores.items() if METRICS[name].bounded}
    assert rates == dict.fromkeys(["exact_match", "rouge1", "rouge2", "rougeL", "token_accuracy", "token_recall"], 0.0)
    rank = nothing.scores["identification_rank"]
    assert rank.value == rank.chance
    assert (nothing.spurious, nothing.precision, nothing.exact) == (0, None, False)
    for status in (Status.DIVERGED, Status.NOT_APPLICABLE):
        failed = judge(Reconstruction(status=status), batch)
        assert failed.scores == {}
        assert failed.comparison.guess == (None, None)


def test_pictures_that_were_not_proposed_have_no_distance() -> None:
    nothing = judge(Reconstruction(status=Status.NOTHING_FOUND), image_batch(images(2, 0)), tuple(images(3, 9)))
    assert set(nothing.scores) == {"identification_rank"}
    assert nothing.scores["identification_rank"].value == 2.5


def test_pixels_are_clamped_and_undefined_ones_stand_for_nothing() -> None:
    truth = torch.cat([torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)])
    found = judge(
        proposal([truth[1] + 7.0, torch.full((1, 4, 4), float("nan")), truth[0] - 3.0]), image_batch(truth), ()
    )
    assert found.scores["mse"].value == 0.0
    assert (found.spurious, found.precision, found.exact) == (1, pytest.approx(2 / 3), True)


def test_what_the_model_did_not_see_of_a_masked_text_counts_as_truth() -> None:
    ids, labels = torch.tensor([[BEGIN, 97, 259, 99, END]]), torch.full((1, 5), IGNORED)
    labels[0, 2] = 98
    batch = Batch(inputs=ids, mask=torch.ones(1, 5, dtype=torch.bool), labels=labels)
    assert judge(proposal([[BEGIN, 97, 98, 99, END]]), batch).scores["exact_match"].value == 1.0


def test_decoys_equal_to_a_true_record_are_left_out() -> None:
    batch = text_batch([list(b"aab bc"), list(b"x")])
    assert len(judge(proposal([]), batch).comparison.decoys) == len(DECOYS) - 1


def test_wrong_inputs_are_refused_with_the_remedy() -> None:
    batch, pictures = text_batch([list(b"abc")]), image_batch(images(1, 0))
    with pytest.raises(DataError, match="one bag"):
        judge(proposal([[97], [98]], ordered=False), batch)
    with pytest.raises(DataError, match="integer token ids"):
        judge(proposal([torch.zeros(2, 2, dtype=torch.int64)]), batch)
    with pytest.raises(DataError, match="integer token ids"):
        judge(proposal([torch.zeros(3)]), batch)
    with pytest.raises(DataError, match=r"shape \(1, 4, 4\)"):
        judge(proposal([torch.zeros(1, 5, 4)]), pictures)
    with pytest.raises(DataError, match="without its tokenizer"):
        require_scorable(batch, None)
    with pytest.raises(DataError, match="given with a tokenizer"):
        require_scorable(pictures, TOKENIZER)
    with pytest.raises(DataError, match=r"need \[0, 1\]"):
        require_scorable(image_batch(images(1, 0) * 2 - 1), None)
    with pytest.raises(DataError, match="no text to decode"):
        compare(proposal([]), pictures, tokenizer=None).decode(torch.tensor([1]))


def test_false_positives_are_counted_in_tokens_and_records() -> None:
    """abc against: its beginning (not false), itself with one wrong token, and one proposal more than there are records."""
    batch = text_batch([[97, 98, 99], [97, 97, 98]])
    account = judge(proposal([[97, 98], [97, 97, 99], [98, 98]]), batch).account
    assert (account.proposed, account.wrong, account.wrong_records, account.spurious) == (7, 3, 2, 1)
    assert account.precision == pytest.approx(4 / 7)


@pytest.mark.parametrize("claims", [(), ([0.5, 1.0],)])
def test_claims_stay_beside_their_tokens(claims: tuple[list[float], ...]) -> None:
    """The frame is left out of the evidence, on the side of the claims too; what stands elsewhere comes last."""
    batch = text_batch([[97, 98, 99]])
    guess = torch.tensor([BEGIN, 97, END, 99, 98, 98])
    sure = tuple(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) for _ in claims)
    found = Reconstruction(records=(guess,), status=Status.CONVERGED, confidence=sure)
    tensors, _ = evidence(compare(found, batch, tokenizer=TOKENIZER), TOKENIZER)
    assert tensors["guess.0"].tolist() == [97, END, 99, 98, 98]
    assert ("confidence.0" in tensors) == bool(claims)
    if claims:
        assert tensors["confidence.0"].tolist() == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])


@pytest.mark.parametrize(
    "claim",
    [torch.tensor([0.5]), torch.tensor([0.5, 1.1]), torch.tensor([0.5, torch.nan]), torch.tensor([1, 1])],
    ids=str,
)
def test_a_claim_that_is_no_probability_for_every_token_is_refused(claim: Tensor) -> None:
    with pytest.raises(DataError, match="probability"):
        Reconstruction(records=(torch.tensor([1, 2]),), status=Status.CONVERGED, confidence=(claim,))


@pytest.mark.parametrize(("steps", "exact"), [(0.0, True), (0.45, True), (0.55, False), (1.0, False), (1.9, False)])
def test_a_picture_is_exact_up_to_half_a_step_of_eight_bits(steps: float, exact: bool) -> None:
    """One pixel off by less than half of 1/255 rounds to the same picture, by more to another."""
    truth = images(2, 0) * 0.5 + 0.25
    guess = truth.clone()
    guess[1, 0, 2, 3] += steps / 255
    assert judge(proposal(list(guess)), image_batch(truth), ()).exact is exact
