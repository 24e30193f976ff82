"""What a prediction says, as nouns that print and store alike. Must not know how it is computed or shown."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gradleak.core.errors import SpecError
from gradleak.theory.error.forecast import ErrorForecast
from gradleak.theory.identifiability.attention_windows import Band
from gradleak.theory.identifiability.counting import Verdict
from gradleak.theory.identifiability.input_kinds import InputLaw
from gradleak.theory.identifiability.jacobian_spectrum import DataSpectrum
from gradleak.theory.identifiability.membership import FirstTest
from gradleak.theory.identifiability.symmetries import Invariance
from gradleak.theory.noise.forecast import NoiseForecast
from gradleak.theory.noise.position_forecast import PositionForecast

NoiseUnit = Literal["noise_multiplier", "relative_std"]

RESIDUAL_IS_NO_PROOF = (
    "A zero residual is never counted as proof here: where equations do not outnumber unknowns, wrong data fit exactly."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Noise added to the update.

    Attributes:
        unit: ``noise_multiplier``: in units of the norm of the whole update (a clip that is active);
            ``relative_std``: in units of each tensor's root mean square.
        value: at least 0.
    """

    unit: NoiseUnit = "noise_multiplier"
    value: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value >= 0):
            raise SpecError(f"{self.unit} must be a finite number of at least 0, got {self.value}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A line of the span table.

    Attributes:
        part: which projection of the first block.
        rank: of its gradient; room: dimensions there are.
        held: tokens of the batch whose own input is in the span; of: tokens in all.
        places: where they stand, in words.
        seen: the rank that the model itself shows in float64; None if it was not asked or cannot be told apart.
        reason: where not every token is held.
    """

    part: str
    rank: int
    room: int
    held: int
    of: int
    places: str
    seen: int | None
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ambiguity:
    """What the first span test cannot tell apart in this batch, whatever its noise: a certificate.

    Attributes:
        tokens, positions, pairs, components, cycles: of the token-position graph.
        rank: of the first layer's inputs by the rank law.
        indistinguishable: pairs of the batch's tokens and positions that lie in the span; ``pairs`` of them are real.
        sentence: the conclusion.
    """

    tokens: int
    positions: int
    pairs: int
    components: int
    cycles: int
    rank: int
    indistinguishable: int
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Equations:
    """The counting law for this model.

    Attributes:
        unknowns: real numbers to find: features of every token, less the directions that no gradient sees.
        per_layer: independent equations in one attention layer's gradient; layers: how many there are.
        most_tokens: tokens up to which one layer's equations outnumber the unknowns.
    """

    unknowns: int
    per_layer: int
    layers: int
    most_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Conclusion:
    """One question and its answer."""

    question: str
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Everything that is known before an attack.

    ``spectrum``, ``error``, ``positions`` and ``first_test`` are sentences where they were not computed.
    """

    model: str
    loss: str
    kind: str
    batch_size: int
    seq_len: int
    tokens: int
    batch: str
    input_law: InputLaw
    bands: tuple[Band, ...]
    table: tuple[Row, ...]
    ambiguity: Ambiguity
    contexts: int
    context_room: int
    equations: Equations
    invariances: tuple[Invariance, ...]
    spectrum: DataSpectrum | str
    error: ErrorForecast | str
    positions: PositionForecast | str
    dtype: str
    noise: Noise
    forecasts: tuple[NoiseForecast, ...]
    first_test: FirstTest | str
    null_residual: float
    conditions: tuple[str, ...]
    invisible: tuple[str, ...]
    conclusions: tuple[Conclusion, ...]
    warning: str = RESIDUAL_IS_NO_PROOF

    def to_plain(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = asdict(self)
        plain["invariances"] = [asdict(item) | {"holds": item.holds} for item in self.invariances]
        for name in ("spectrum", "error", "positions", "first_test"):
            if isinstance(plain[name], str):
                plain[name] = {"not_computed": plain[name]}
        if not isinstance(self.spectrum, str):
            plain["spectrum"]["resolution"] = self.spectrum.resolution.name
        for conclusion in plain["conclusions"]:
            verdict = conclusion.pop("verdict")
            conclusion |= {"verdict": verdict["uniqueness"].name, "reason": verdict["reason"]}
        return plain
