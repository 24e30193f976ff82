"""Arguments out of range are refused where they are given."""

from __future__ import annotations

import pytest

from gradleak.core.errors import SpecError
from gradleak.defenses.ada_defense import AdaDefense
from gradleak.defenses.censor import Censor
from gradleak.defenses.dgc import DGC
from gradleak.defenses.low_rank import LowRank
from gradleak.defenses.outpost import Outpost
from gradleak.defenses.qsgd import QSGD
from gradleak.defenses.soteria import Soteria

pytestmark = pytest.mark.contract


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
