"""The limit of placement against the dimension of a corner."""

from __future__ import annotations

import pytest

from gradleak.theory.identifiability.placement import corner_dimension, most_placed

pytestmark = pytest.mark.oracle


def test_a_corner_of_a_box_has_half_a_dimension() -> None:
    assert corner_dimension(2) == pytest.approx(0.5, abs=0.02)
    assert most_placed(768, 1) == 0
