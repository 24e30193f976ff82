"""Most DP-SGD that is trained with torch is trained with Opacus, and what it will be claimed for depends on objects that are
spread over a training script. Reads them into one ``Plan``, with the claim that Opacus itself makes, for the accountant and the
lint. Must not import opacus: it is known by its attributes, so a plan can be read without it. Must not compute any ε.

    from gradleak.integrations.opacus import plan_of
    from gradleak.privacy.accounting.accountant import account
    from gradleak.privacy.lint import lint

    plan = plan_of(engine, optimizer, data_loader, delta=1e-5)      # after, or with steps= before, the training
    print(account(plan).epsilon, *lint(plan), sep="\n")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from gradleak.core.errors import UsageError
from gradleak.privacy.plan.plan import Claimed, ClaimedBy, Phase, Plan, Sampling, Viewpoint

_METHODS: dict[str, ClaimedBy] = {"prv": "prv", "rdp": "rdp", "gdp": "gdp_clt"}


class Accountant(Protocol):
    """``opacus.accountants.IAccountant``."""

    history: Sequence[tuple[float, float, int]]

    def get_epsilon(self, delta: float) -> float: ...

    def mechanism(self) -> str: ...


class Engine(Protocol):
    """``opacus.PrivacyEngine``."""

    accountant: Accountant


class Optimizer(Protocol):
    """``opacus.optimizers.DPOptimizer`` and its subclasses."""

    noise_multiplier: float
    max_grad_norm: float


class Loader(Protocol):
    """``torch.utils.data.DataLoader``, as ``PrivacyEngine.make_private`` returned it."""

    dataset: Any
    sampler: Any
    batch_sampler: Any

    def __len__(self) -> int: ...


def plan_of(
    engine: Engine,
    optimizer: Optimizer,
    loader: Loader,
    *,
    delta: float,
    steps: int | None = None,
    sampling: Sampling | None = None,
    view: Viewpoint = "final_model",
) -> Plan:
    """The training that these three objects carry out, with what Opacus claims for it.

    Args:
        engine, optimizer, loader: as ``make_private`` returned them.
        delta: the δ at which ε is stated.
        steps: of a training that is still to come; None reads the steps that were made.
        sampling: how batches are drawn, where the loader does not say.
        view: what the adversary sees; Opacus itself always means the final model.

    Raises:
        UsageError: if no step was made and ``steps`` is None, if ``steps`` is given after steps were made, or if the way of
            sampling cannot be read from the loader.

    Guarantees:
        ε of the plan is never below that of the steps in the history: steps at several sampling rates count at the largest.
        Clipping in parts (``clipping="per_layer"``) counts as one clip, because Opacus' noise is in units of the root of
        the summed squares of the parts' norms. Adaptive clipping is described as divided by the actual batch size, which
        in Opacus 1.6.0 sets the next clipping norm and has no noise; the accountant then refuses.

    Source: meta-pytorch/opacus 1.6.0, ``privacy_engine.py``, ``optimizers/``, ``data_loader.py``, ``accountants/``.
    """
    made = tuple(engine.accountant.history)
    phases, rate = _made(made) if made else _coming(optimizer, loader, steps)
    if made and steps is not None:
        raise UsageError(f"steps={steps} is for a training that is still to come, and steps were made. Leave it out.")
    drawn = sampling or _sampling(loader)
    return Plan(
        phases=phases,
        delta=delta,
        clip="example",
        sampled="records",
        sampling="none" if rate == 1.0 and drawn == "poisson" else drawn,
        sampling_rate=rate,
        relation="add_or_remove",
        view=view,
        divisor="actual" if hasattr(optimizer, "unclipped_num_std") else "expected",
        records=len(loader.dataset),
        claimed=_claimed(engine.accountant, sum(phase.steps for phase in phases), delta if made else None),
    )


def _made(history: tuple[tuple[float, float, int], ...]) -> tuple[tuple[Phase, ...], float]:
    phases = tuple(Phase(noise_multiplier=float(z), steps=int(n)) for z, _, n in history)
    return phases, min(1.0, max(float(rate) for _, rate, _ in history))


def _coming(optimizer: Optimizer, loader: Loader, steps: int | None) -> tuple[tuple[Phase, ...], float]:
    if steps is None:
        raise UsageError("The privacy engine has made no step yet. Give steps: how many the training will make.")
    return (Phase(noise_multiplier=float(optimizer.noise_multiplier), steps=steps),), 1 / len(loader)


def _sampling(loader: Loader) -> Sampling:
    """From the samplers: Opacus' own draw by a rate; torch's cut a permutation, or the data in order, into batches."""
    if hasattr(loader.batch_sampler, "sample_rate"):
        return "poisson"
    plain = type(loader.sampler).__name__ in ("RandomSampler", "SequentialSampler", "DistributedSampler")
    if plain and not getattr(loader.sampler, "replacement", False):
        # The guarantee of shuffled epochs is for an adversary who knows the batches, so a fixed order has it too.
        return "shuffle"
    raise UsageError(
        f"How {type(loader.sampler).__name__} draws its batches is not known here. Give sampling: none, poisson, fixed or shuffle."
    )


def _claimed(accountant: Accountant, steps: int, delta: float | None) -> Claimed:
    return Claimed(
        accountant=_METHODS.get(accountant.mechanism()),
        epsilon=None if delta is None else float(accountant.get_epsilon(delta)),
        steps=steps,
        sampling="poisson",
        relation="add_or_remove",
        unit="record",
        view="final_model",
    )
