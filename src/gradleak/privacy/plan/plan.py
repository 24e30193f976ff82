"""Why: a training plan as plain data, everything that its ε depends on and nothing else. It describes; the accountant
interprets (``views`` → ``events`` → ``accountant``), the linter reads it beside what was claimed for it.

Must not compute anything about privacy, and must not know stages, models or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from gradleak.core.errors import UnknownNameError, UsageError

Mechanism = Literal["gaussian", "laplace", "tree"]
Clip = Literal["example", "update", "tensor", "data", "none"]
Sampled = Literal["records", "clients"]
Sampling = Literal["none", "poisson", "fixed", "shuffle"]
Relation = Literal["add_or_remove", "zero_out", "replace_one"]
Viewpoint = Literal["final_model", "server_sees_each_update", "secure_aggregation"]
Unit = Literal["record", "user"]
NoiseBy = Literal["client", "server"]
NoiseSeed = Literal["fresh", "reused"]
Divisor = Literal["expected", "actual"]
ClaimedBy = Literal["pld", "prv", "rdp", "zcdp", "gdp_clt", "classical"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Steps with the same noise. A noise schedule is several phases; it must be fixed before the data are seen.

    Attributes:
        noise_multiplier: standard deviation of the Gaussian noise on the *sum* of clipped terms, in units of the clip norm; for
            Laplace noise its scale in units of the L1 clip norm. At least 0.
        steps: number of releases, at least 1; for a tree the number of its leaves.

    Raises:
        UsageError: for a value out of range.
    """

    noise_multiplier: float
    steps: int = 1

    def __post_init__(self) -> None:
        z = self.noise_multiplier
        _require(math.isfinite(z) and z >= 0, "noise_multiplier", z, "a finite number of at least 0")
        _require(self.steps >= 1, "steps", self.steps, "at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """How somebody accounted for the plan: what the linter compares the plan with. ``None`` = not said.

    Attributes:
        accountant: the method: ``pld``, ``prv``, ``rdp``, ``zcdp``, ``gdp_clt`` (central limit) or ``classical`` (σ =
            √(2 ln(1.25/δ))/ε).
        epsilon: the ε that is claimed.
        steps: the number of releases that was accounted for. sampling_rate: the share of a step that was.
        sampling, relation, unit, view: what the accounting assumed.
    """

    accountant: ClaimedBy | None = None
    epsilon: float | None = None
    steps: int | None = None
    sampling_rate: float | None = None
    sampling: Sampling | None = None
    relation: Relation | None = None
    unit: Unit | None = None
    view: Viewpoint | None = None

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("claimed accountant", self.accountant, ClaimedBy),
            ("claimed sampling", self.sampling, Sampling),
            ("claimed relation", self.relation, Relation),
            ("claimed unit", self.unit, Unit),
            ("claimed view", self.view, Viewpoint),
        ):
            if value is not None:
                _choose(name, value, choices)
        _require(self.epsilon is None or self.epsilon >= 0, "claimed epsilon", self.epsilon, "at least 0")
        _require(self.steps is None or self.steps >= 1, "claimed steps", self.steps, "at least 1")
        rate = self.sampling_rate
        _require(rate is None or 0 < rate <= 1, "claimed sampling_rate", rate, "above 0 and at most 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a training run does to one record or one user.

    Attributes:
        phases: noise and number of steps, in order.
        delta: the δ at which ε is stated, in (0, 1).
        mechanism: ``gaussian``, ``laplace`` with an L1 clip, or ``tree``: DP-FTRL, Gaussian noise on every node of a binary
            tree over the steps of a phase (restarted with the next phase), where the unit takes part at most once in a tree.
        clip: what is clipped to C before it is summed. ``example``: each example's gradient over all parameters. ``update``: the
            whole update of one client. ``tensor``: each of ``tensors`` parts of an example's gradient at C by itself.
            ``data``: the bound follows the private data. ``none``.
        tensors: number of separately clipped parts for ``clip="tensor"``.
        sampled: what is drawn in each step: ``records`` (inside a client, in secret), or whole ``clients``. None = not said; a
            server that sees updates is then taken to see who takes part.
        sampling: how: ``none`` (every step uses all), ``poisson`` (each by its own coin), ``fixed`` (a fresh batch of fixed size in
            each step), ``shuffle`` (a permutation cut into batches, each epoch).
        sampling_rate: q in (0, 1], the expected share that a step uses.
        batch_limit: Poisson batches longer than this are cut to a random part of this size; None = they are used whole.
        relation: which data sets count as neighbors. ``zero_out``: one term of the sum becomes zero, nothing else changes.
        view: what the adversary sees.
        clients: for ``secure_aggregation``, the number M of honest clients whose noise is in the sum.
        participations: steps in which the client takes part, where the server sees that; default ⌈q·steps⌉.
        unit: what is protected: a ``record``, or a ``user`` with all records.
        records_per_user: k, at least 1.
        noise_by: who adds the noise.
        unnoised: names of parameters that are released without noise.
        noise_seed: ``reused`` if several steps draw the same noise.
        divisor: what the noisy sum is divided by: the ``expected`` batch size, or the ``actual`` size of this step's batch.
        records: N, the number of records (or clients, if clients are sampled); None = not said.
        claimed: how somebody accounted for this plan.

    Raises:
        UsageError: for a value out of range; names the nearest valid choice where there is one.
    """

    phases: tuple[Phase, ...]
    delta: float = 1e-5
    mechanism: Mechanism = "gaussian"
    clip: Clip = "example"
    tensors: int = 1
    sampled: Sampled | None = None
    sampling: Sampling = "none"
    sampling_rate: float = 1.0
    batch_limit: int | None = None
    relation: Relation = "add_or_remove"
    view: Viewpoint = "final_model"
    clients: int = 1
    participations: int | None = None
    unit: Unit = "record"
    records_per_user: int = 1
    noise_by: NoiseBy = "client"
    unnoised: tuple[str, ...] = ()
    noise_seed: NoiseSeed = "fresh"
    divisor: Divisor = "expected"
    records: int | None = None
    claimed: Claimed | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) is not None:
                _choose(name, getattr(self, name), choices)
        _require(len(self.phases) > 0, "phases", 0, "at least one; give a noise multiplier and a number of steps")
        _require(
            0 < self.delta < 1, "delta", self.delta, "between 0 and 1, such as 1e-5 or less than 1 over the records"
        )
        _require(
            0 < self.sampling_rate <= 1,
            "sampling_rate",
            self.sampling_rate,
            "above 0 and at most 1 (a share: 1 % is 0.01)",
        )
        for name in ("tensors", "clients", "records_per_user", "participations", "records", "batch_limit"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")
        self._require_consistent()

    def _require_consistent(self) -> None:
        if self.sampling == "none" and self.sampling_rate != 1.0:
            raise UsageError(
                f"sampling_rate={self.sampling_rate:g} needs a way of sampling. Say sampling poisson, fixed or shuffle; they differ."
            )
        if self.participations is not None and self.participations > self.steps:
            raise UsageError(f"participations={self.participations} is more than the {self.steps} steps of the plan.")
        if self.batch_limit is not None and (self.sampling != "poisson" or self.records is None):
            raise UsageError(
                f"batch_limit={self.batch_limit} cuts Poisson batches, which are cut more often the more records there are. "
                "Say sampling poisson, and records: how many there are."
            )
        if self.mechanism == "tree" and self.sampling != "none":
            raise UsageError(
                f"A tree adds noise over steps in any order and claims nothing from sampling {self.sampling}. Leave the sampling out; "
                "each phase is one tree, in which the unit takes part at most once."
            )
        if self.tensors > 1 and self.clip != "tensor":
            raise UsageError(f"tensors={self.tensors} is for clip tensor only, and clip is {self.clip}.")

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def least_noise(self) -> float:
        return min(phase.noise_multiplier for phase in self.phases)


_CHOICES = {
    "mechanism": Mechanism,
    "clip": Clip,
    "sampled": Sampled,
    "sampling": Sampling,
    "relation": Relation,
    "view": Viewpoint,
    "unit": Unit,
    "noise_by": NoiseBy,
    "noise_seed": NoiseSeed,
    "divisor": Divisor,
}


def _choose(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise UnknownNameError(name, str(value), get_args(choices))


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise UsageError(f"{name}={value} is out of range. {name} must be {wanted}.")
