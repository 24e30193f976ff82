"""The settings at which every defense of the catalogue is measured. Imported by the benchmarks of defenses; prints nothing.

A defense that is not named here enters with its defaults, so a new file in ``gradleak.defenses`` needs no edit.
"""

from __future__ import annotations

from collections.abc import Mapping

from gradleak.core.errors import SpecError
from gradleak.harness.request import catalogue

CHOSEN: Mapping[str, tuple[str, ...]] = {
    "clip": ("clip(max_norm=1.0)", "clip(max_norm=1.0)+gaussian(noise_multiplier=0.01)"),
    "dgc": ("dgc(fraction=0.9)",),
    "dpsgd": ("dpsgd(max_norm=4.0, noise_multiplier=6.0)", "dpsgd(max_norm=1.0, noise_multiplier=0.01)"),
    "fed_cdp": ("fed_cdp(max_norm=4.0, noise_multiplier=6.0)",),
    "fed_sdp": ("fed_sdp(max_norm=4.0, noise_multiplier=6.0)",),
    "fed_alpha_cdp": ("fed_alpha_cdp(noise_multiplier=6.0)",),
    "frozen_blocks": ("frozen_blocks(blocks=1)",),
    "gaussian": ("gaussian(relative_std=0.1)", "gaussian(relative_std=1.0)", "gaussian(relative_std=3.0)"),
    "grad_defense": ("grad_defense()", "grad_defense(std=1.0)"),
    "laplace": ("laplace(scale=0.01)",),
    "low_rank": ("low_rank(rank=2)",),
    "ppp": ("precode()+ppp(relative_std=0.1)", "precode()+ppp(relative_std=1.0)", "precode()+ppp(relative_std=10.0)"),
    "prune": ("prune(fraction=0.9)", "prune(fraction=0.99)"),
    "quantize": ("quantize(dtype=int8)",),
    "random_mask": ("random_mask(fraction=0.9)",),
    "secure_aggregation": ("secure_aggregation(number=4)",),
    "soteria": ("soteria(fraction=0.5)",),
}
"""Knobs of the notes or the guide; C = 4 and z = 6 are those of Fed-CDP. None was chosen for what it measures."""


def settings() -> tuple[str, ...]:
    """One chain or several for every defense that there is, by name.

    Raises:
        SpecError: if a defense has no usable defaults and no entry here.
    """
    found: list[str] = []
    for name in catalogue.names("defenses"):
        chains = CHOSEN.get(name, (f"{name}()",))
        try:
            for chain in chains:
                catalogue.make_stages(chain)
        except SpecError as error:
            raise SpecError(f"benchmarks/defenses/settings.py names no setting of {name}: {error}") from error
        found += chains
    return tuple(found)
