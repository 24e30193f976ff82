"""The losses against torch's own, and what each says of labels, positions and visibility."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from gradleak.core.batch import IGNORED, soft_labels
from gradleak.core.errors import UnknownNameError
from gradleak.core.loss import CAUSAL_LM, CLASSIFICATION, LOSSES, MASKED_LM, SQUARED, Loss, find_loss

pytestmark = pytest.mark.contract


@pytest.mark.oracle
def test_classification_equals_cross_entropy_per_group() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
    values = CLASSIFICATION.per_group(logits, CLASSIFICATION.targets(labels, 3), groups=2)
    expected = torch.stack([cross_entropy(logits[i : i + 3], labels[i : i + 3]) for i in (0, 3)])
    torch.testing.assert_close(values, expected)


@pytest.mark.oracle
def test_language_modeling_shifts_and_averages_over_real_targets() -> None:
    logits = torch.randn(4, 5, 7)
    labels = torch.randint(0, 7, (4, 5))
    labels[1, 3:] = IGNORED
    labels[2, 1:4] = IGNORED
    values = CAUSAL_LM.per_group(logits, CAUSAL_LM.targets(labels, 7), groups=2)
    expected = [
        cross_entropy(logits[i : i + 2, :-1].flatten(0, 1), labels[i : i + 2, 1:].flatten(), ignore_index=IGNORED)
        for i in (0, 2)
    ]
    torch.testing.assert_close(values, torch.stack(expected))


@pytest.mark.oracle
def test_masked_lm_does_not_shift() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.full((2, 5), IGNORED)
    labels[0, 2], labels[1, 4] = 3, 6
    values = MASKED_LM.per_group(logits, MASKED_LM.targets(labels, 7))
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(values, expected.unsqueeze(0))


@pytest.mark.oracle
def test_squared_is_half_the_squared_distance_to_the_target_of_the_class() -> None:
    outputs, centers, labels = torch.randn(4, 6), torch.randn(3, 6), torch.tensor([2, 0, 1, 1])
    logits = -0.5 * (outputs.unsqueeze(1) - centers).square().sum(-1)
    expected = 3 * mse_loss(outputs, centers[labels])
    torch.testing.assert_close(SQUARED.per_group(logits, SQUARED.targets(labels, 3)), expected.unsqueeze(0))


@pytest.mark.oracle
@pytest.mark.parametrize("loss", [CLASSIFICATION, CAUSAL_LM, MASKED_LM, SQUARED], ids=str)
def test_visible_tokens_are_those_whose_logits_have_a_derivative(loss: Loss) -> None:
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    labels = torch.tensor([[1, 2, 0, IGNORED], [0, 1, 2, 1]])
    logits = torch.randn(2, 4, 3, requires_grad=True)
    if loss.labels_records:
        value = loss.per_group((logits * mask.unsqueeze(-1)).sum(1), soft_labels(labels[:, 0], 3)).sum()
    else:
        value = loss.per_group(logits, loss.targets(labels, 3)).sum()
    (slopes,) = torch.autograd.grad(value, logits)
    assert torch.equal(slopes.abs().sum(-1) > 0, loss.visible(mask))
    assert loss.sees_every_token == bool((loss.visible(mask) == mask).all())


@pytest.mark.contract
def test_only_the_text_itself_determines_its_labels() -> None:
    ids, mask = torch.tensor([[4, 5, 6], [7, 8, 0]]), torch.tensor([[True, True, True], [True, True, False]])
    assert {name: loss.labels_from(ids, mask) is None for name, loss in LOSSES.items()} == {
        "classification": True,
        "causal-lm": False,
        "masked-lm": True,
    }
    labels = CAUSAL_LM.labels_from(ids, mask)
    assert labels is not None and labels.tolist() == [[4, 5, 6], [7, 8, IGNORED]]


@pytest.mark.contract
@pytest.mark.parametrize("loss", [CLASSIFICATION, CAUSAL_LM, MASKED_LM, SQUARED], ids=str)
def test_random_labels_fit_the_targets(loss: Loss) -> None:
    ids = torch.zeros(3, 5, dtype=torch.int64)
    labels = loss.random_labels(ids, 4, torch.Generator().manual_seed(0))
    assert labels.shape == ((3,) if loss.labels_records else (3, 5))
    assert loss.targets(labels, 4).shape == (*labels.shape, 4)


@pytest.mark.errors
def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    assert find_loss("causal-lm") == CAUSAL_LM
    with pytest.raises(UnknownNameError, match="Did you mean 'causal-lm'"):
        find_loss("causal-ml")
    with pytest.raises(UnknownNameError):
        find_loss("squared")
