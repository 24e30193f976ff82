"""An ε without what it rests on is not a statement. Writes that down, in words, the same for every surface.
Must not compute any ε.
"""

from __future__ import annotations

from dataclasses import dataclass

from gradleak.privacy.plan.axes import drawn_units
from gradleak.privacy.plan.plan import Plan
from gradleak.privacy.plan.views import Release, nodes

VIEWS = {
    "final_model": "the model, at any step; who was sampled stays secret",
    "server_sees_each_update": "the server sees each client's update",
    "secure_aggregation": "the server sees the sum over the clients of a step",
}
RELATIONS = {
    "add_or_remove": "add-or-remove: with or without the unit",
    "zero_out": "zero-out: the unit's term becomes zero, nothing else changes",
    "replace_one": "replace-one: the unit is exchanged for any other",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Basis:
    """What an ε rests on, in words."""

    mechanism: str
    sensitivity: str
    sampling: str
    composition: str
    relation: str
    view: str
    unit: str
    theorem: str


def basis(plan: Plan, release: Release | None) -> Basis:
    """Of a plan; ``release`` is None for a plan without a guarantee."""
    shown = plan.relation if release is None else release.relation
    return Basis(
        mechanism=_mechanism(plan, release),
        sensitivity=_sensitivity(plan),
        sampling=_sampling(plan, release),
        composition=_composition(plan, release),
        relation=RELATIONS[shown],
        view=VIEWS[plan.view],
        unit=_unit(plan),
        theorem="none" if release is None or release.row is None else f"{release.row.name}: {release.row.theorem}",
    )


def _mechanism(plan: Plan, release: Release | None) -> str:
    if release is None:
        return "none"
    levels = sorted({p.noise_multiplier for p in release.phases})
    shown = f"{levels[0]:g}" if len(levels) == 1 else f"{levels[0]:g} to {levels[-1]:g}"
    kind = {
        "gaussian": "Gaussian noise, multiplier",
        "laplace": "Laplace noise, scale over the L1 clip norm",
        "tree": "Gaussian noise on the nodes of a binary tree, as one release with multiplier",
    }
    return f"{kind[plan.mechanism]} {shown}"


def _sensitivity(plan: Plan) -> str:
    parts = f"{plan.tensors}·C" if plan.mechanism == "laplace" else f"√{plan.tensors}·C"
    clipped = {
        "example": "each example's gradient clipped to C",
        "update": "the client's whole update clipped to C",
        "tensor": f"{plan.tensors} parts of each example's gradient clipped to C each: {parts}",
        "microbatch": "the gradient of each group of examples clipped to C: one example moves it by up to 2C",
        "batch": "the gradient of the whole batch clipped to C: one example moves it by up to 2C",
        "data": "unknown: the clipping bound follows the data",
        "none": "unbounded: nothing is clipped",
    }[plan.clip]
    if plan.mechanism == "laplace":
        clipped += " in L1 norm"
    if plan.mechanism == "tree":
        clipped += f", in at most {nodes(max(p.steps for p in plan.phases))} nodes of a tree"
    exchanged = plan.relation == "replace_one" and plan.clip not in ("microbatch", "batch")
    return clipped + (", distance 2C between neighbors" if exchanged else "")


def _sampling(plan: Plan, release: Release | None) -> str:
    if plan.sampling == "none":
        return "none: every step uses the unit"
    how = {
        "poisson": "Poisson",
        "fixed": "fixed-size batches",
        "shuffle": "shuffled epochs",
        "with_replacement": "batches drawn with replacement",
    }[plan.sampling]
    text = f"{how} of {drawn_units(plan)}, rate {plan.sampling_rate:g}"
    if plan.batch_limit is not None:
        text += f", cut to {plan.batch_limit} of {plan.records}"
    if release is not None and release.law in ("full", "known") and plan.sampling_rate < 1.0:
        text += ", not counted as hidden: no amplification"
    return text


def _composition(plan: Plan, release: Release | None) -> str:
    steps = plan.steps if release is None else release.steps
    if plan.mechanism == "tree":
        return f"{len(plan.phases)} tree{'s' if len(plan.phases) != 1 else ''} over {plan.steps} steps"
    if release is not None and release.law == "known":
        return f"a random number of participations in {steps} steps, δ averaged over it"
    levels = len({p.noise_multiplier for p in plan.phases})
    return f"{steps} release{'s' if steps != 1 else ''}" + (
        f", {levels} noise levels fixed in advance" if levels > 1 else ""
    )


def _unit(plan: Plan) -> str:
    if plan.clip == "update":
        return "one client, all its records"
    if plan.unit == "user":
        return f"one user with at most {plan.records_per_user} record{'s' if plan.records_per_user != 1 else ''}"
    return "one record"
