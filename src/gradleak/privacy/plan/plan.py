"""A training plan as plain data: everything that its ε depends on and nothing else. It describes; the accountant interprets
(``combinations`` → ``views`` → ``events`` → ``accountant``), the linter reads it beside what was claimed for it.

Must not compute anything about privacy, and must not know stages, models or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from gradleak.core.errors import UnknownNameError, UsageError

Mechanism = Literal["gaussian", "laplace", "tree"]
Clip = Literal["example", "update", "tensor", "microbatch", "batch", "data", "none"]
Sampled = Literal["records", "clients"]
Sampling = Literal["none", "poisson", "fixed", "shuffle", "with_replacement"]
LastBatch = Literal["dropped", "kept"]
Normalization = Literal["example", "batch"]
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
        steps: the number of releases that was accounted for; 0 if the accountant's history is empty. sampling_rate: the share of a step that was.
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
        _require(self.steps is None or self.steps >= 0, "claimed steps", self.steps, "at least 0")
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
            ``microbatch``: the gradient of each group of examples. ``batch``: the gradient of the whole batch, as one vector.
            ``data``: the bound follows the private data. ``none``.
        tensors: number of separately clipped parts; required for ``clip="tensor"``.
        count_noise: where C follows a private quantile (adaptive clipping): standard deviation of the noise on the *number* of
            gradients below C, each counted as ±½, released in every step beside the sum. None = C is fixed in advance.
        normalization: ``batch`` if layers use statistics of the batch (BatchNorm), so that no example has a gradient of its own.
        sampled: what is drawn in each step: ``records`` (inside a client, in secret), or whole ``clients``. None = not said; whole
            clients are assumed if whole updates are clipped or the server sees updates, else records. The notes say so.
        sampling: how: ``none`` (every step uses all), ``poisson`` (each by its own coin), ``fixed`` (a fresh batch of fixed size in
            each step), ``shuffle`` (a permutation cut into batches, each epoch), ``with_replacement`` (each place of a batch
            is drawn from all, so a record can stand in it several times).
        sampling_rate: q in (0, 1], the expected share that a step uses.
        last_batch: for ``shuffle``, whether the incomplete last batch of an epoch is ``kept`` or ``dropped``; None = not said,
            accounted for as the worse of the two.
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
    tensors: int | None = None
    count_noise: float | None = None
    normalization: Normalization = "example"
    sampled: Sampled | None = None
    sampling: Sampling = "none"
    sampling_rate: float = 1.0
    last_batch: LastBatch | None = None
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
        noise = self.count_noise
        _require(noise is None or noise > 0, "count_noise", noise, "positive")
        for name in ("tensors", "clients", "records_per_user", "participations", "records", "batch_limit"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")
        self._require_consistent()

    def _require_consistent(self) -> None:
        if self.sampling == "none" and self.sampling_rate != 1.0:
            raise UsageError(
                f"sampling_rate={self.sampling_rate:g} needs a way of sampling. Say sampling poisson, fixed or shuffle (or with_replacement); they differ."
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
        if self.clip == "tensor" and self.tensors is None:
            raise UsageError(
                "clip tensor needs tensors: how many parts of a gradient are clipped to C each. Their sensitivity together is the "
                "root of that number times C; give tensors=1 for a single part."
            )
        if (self.tensors or 1) > 1 and self.clip != "tensor":
            raise UsageError(f"tensors={self.tensors} is for clip tensor only, and clip is {self.clip}.")
        if self.sampling == "with_replacement" and self.records is None:
            raise UsageError(
                "Batches drawn with replacement can hold a record several times, as often as their size allows. Give records: how "
                "many there are to draw from."
            )
        if self.last_batch is not None and self.sampling != "shuffle":
            raise UsageError(f"last_batch={self.last_batch} is for shuffled epochs, and sampling is {self.sampling}.")
        if self.count_noise is not None and self.mechanism != "gaussian":
            raise UsageError(
                f"count_noise is accounted for beside Gaussian noise only, and mechanism is {self.mechanism}."
            )

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
    "last_batch": LastBatch,
    "normalization": Normalization,
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
