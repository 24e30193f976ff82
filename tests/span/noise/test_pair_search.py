"""What depends on the pairs that were proposed is a candidate too."""

from __future__ import annotations

import pytest
import torch

from gradleak.mechanics.probing.model import Model
from gradleak.span.candidates.types import Candidates
from gradleak.span.noise.pair_search import with_ambiguous
from tests.support.span import make_subject

pytestmark = pytest.mark.oracle


def test_what_depends_on_found_pairs_is_a_candidate_too() -> None:
    subject = make_subject("gpt2")
    path = subject.anatomy.first_maps()[0].module
    alone = [torch.tensor([5]), torch.tensor([7])]
    square = [torch.tensor([5, 7]), torch.tensor([5])]

    def candidates(tokens: list[torch.Tensor]) -> Candidates:
        return Candidates(
            tokens=tuple(tokens),
            residuals=tuple(torch.zeros(len(ids)) for ids in tokens),
            nearest=torch.stack([ids[0] for ids in tokens]),
            null_cut=1.0,
            positional=True,
        )

    model = Model(subject=subject)
    assert [ids.tolist() for ids in with_ambiguous(candidates(alone), model, path).tokens] == [[5], [7]]
    assert [sorted(ids.tolist()) for ids in with_ambiguous(candidates(square), model, path).tokens] == [[5, 7], [5, 7]]
