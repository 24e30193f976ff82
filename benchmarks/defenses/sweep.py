"""Every defense of the catalogue in the small worlds of the notes: what naive and informed attackers recover, and its price.

    python -m benchmarks.defenses.sweep [--seeds 5] [--measures pictures rank ...] [--defenses "sign()" ...]

Cells that ``results/defenses.jsonl`` holds already are not measured again: stop it and go on as you like. A cell is one defense,
one measure, one seed; no cell depends on another. Then ``python -m benchmarks.defenses.table`` writes the tables.

    pictures  PSNR from the mean squared error, LeNet on digits (``worlds.py``); attacks L2 and cosine
    tanh, vit PSNR without a defense on the networks on which stages that change the model are attacked
    unbalanced  PSNR of PRECODE where the cosine attack takes tensors as they are, as published, and does not balance them
    after_training, during_training  PSNR for an attacker inside the client, of Fed-SDP and Fed-CDP
    texts     token recall, a small text encoder on the shipped messages; three attacks
    rank      of the private picture among 180 of its class (of the private text among 20)
    topics    accuracy of a short federated training of a text encoder, with the seeds of the undefended one
    digits    the same of a vision transformer

Every attack runs twice on the same release: with the defense among the attacker's facts (informed) and without (naive).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.common import origin
from benchmarks.defenses.records import Cell, append, read
from benchmarks.defenses.settings import settings
from benchmarks.defenses.worlds import (
    DISTANCES,
    PICTURE_ATTACKS,
    SEVERAL,
    TEXT_ATTACKS,
    MakeScene,
    Scene,
    decibels,
    picture_scene,
    rank,
    recall,
    smallest_batch,
    text_scene,
)
from gradleak.core.errors import GradleakError
from gradleak.core.knowledge import Place
from gradleak.harness.request.prepare import read_chain
from gradleak.harness.utility.tasks import TASKS
from gradleak.harness.utility.training import Schedule, train

ROUNDS: Mapping[str, int] = {"topics": 60, "digits": 120}
LIMIT = 60.0
"""Most processor seconds of one training."""
OTHER_NETS = ("tanh", "vit")
PLACES: tuple[Place, ...] = ("after_training", "during_training")
PLACED = ("fed_sdp", "fed_cdp")
UNBALANCED: Mapping[str, str] = {"cosine": "inverting_gradients(iterations=400, total_variation=0.0001, balance=0.0)"}
INFORMED: Mapping[str, bool] = {"informed": True, "naive": False}


def attacked(
    measure: str, make: MakeScene, chain: str, seed: int, size: int, values: Callable[[Scene], Mapping[str, float]]
) -> Cell:
    """One scene, and what was made of it."""
    start = time.process_time()
    scene = make(chain, seed, size)
    found = values(scene)
    seconds = time.process_time() - start
    return Cell(measure=measure, defense=chain, seed=seed, records=size, net=scene.net, values=found, seconds=seconds)


def pictures(
    chain: str,
    seed: int,
    size: int,
    make: MakeScene = picture_scene,
    attacks: Mapping[str, str] = PICTURE_ATTACKS,
) -> Cell:
    def values(scene: Scene) -> Mapping[str, float]:
        return {
            f"{name}, {who}": decibels(scene, attack, seed, informed=known)[0]
            for name, attack in attacks.items()
            for who, known in INFORMED.items()
        }

    return attacked("pictures", make, chain, seed, size, values)


def texts(chain: str, seed: int, size: int) -> Cell:
    def values(scene: Scene) -> Mapping[str, float]:
        return {
            f"{name}, {who}": recall(scene, attack, seed, informed=known)[0]
            for name, attack in TEXT_ATTACKS.items()
            for who, known in INFORMED.items()
        }

    return attacked("texts", text_scene, chain, seed, size, values)


def ranks(chain: str, seed: int, size: int, make: MakeScene) -> Cell:
    def values(scene: Scene) -> Mapping[str, float]:
        found = {
            f"{distance}, {who}": rank(scene, distance, seed, informed=known)
            for distance in DISTANCES
            for who, known in INFORMED.items()
        }
        return {**found, "among": float(len(scene.candidates))}

    return attacked("rank", make, chain, seed, size, values)


def trained(task: str, chain: str, seed: int) -> Cell:
    """Accuracy and costs of one short training; the costs alone where the whole of it would take longer than ``LIMIT``."""
    calls = () if chain == "none" else read_chain(chain)
    found = train(task, calls, seed, Schedule(rounds=1))
    whole = found.cpu_seconds * ROUNDS[task]
    values: dict[str, float] = {"seconds": whole, "peak bytes": found.peak_bytes}
    reason = found.reason
    if not reason and whole > LIMIT:
        reason = (
            f"not trained: a round takes {found.cpu_seconds:.1f} CPU s, {ROUNDS[task]} of them more than {LIMIT:.0f} s"
        )
    if not reason:
        found = train(task, calls, seed, Schedule(rounds=ROUNDS[task]))
        reason = found.reason
    if found.accuracy is not None and not reason:
        last = found.losses[-10:]
        values |= {"accuracy": found.accuracy, "last loss": sum(last) / len(last), "seconds": found.cpu_seconds}
    return Cell(
        measure=task,
        defense=chain,
        seed=seed,
        records=Schedule().batch_size,
        net=task,
        values={} if found.accuracy is None else values,
        seconds=found.cpu_seconds,
        reason=reason,
    )


def sizes_of(chain: str, make: MakeScene) -> tuple[int, ...]:
    """Numbers of private records to attack. Raises ``GradleakError`` if the chain has no place there."""
    return (1, SEVERAL) if chain == "none" else (smallest_batch(make, chain),)


def attack_all(chain: str, seed: int, wanted: set[str]) -> None:
    """What attackers of one defense get: pictures where it takes them, and texts."""
    places: tuple[tuple[str, MakeScene, Callable[[str, int, int], Cell]], ...]
    places = (("pictures", picture_scene, pictures), ("texts", text_scene, texts))
    ranked = "rank" not in wanted
    for measure, make, attack in places:
        try:
            sizes = sizes_of(chain, make)
        except GradleakError as error:
            if measure in wanted:
                note(Cell(measure=measure, defense=chain, seed=seed, reason=str(error)))
            continue
        for size in sizes:
            if measure in wanted:
                note(attack(chain, seed, size))
            if not ranked or (chain == "none" and "rank" in wanted):
                note(ranks(chain, seed, size, make))
        ranked = True
    attack_elsewhere(chain, seed, wanted)


def attack_elsewhere(chain: str, seed: int, wanted: set[str]) -> None:
    """The measures that only some defenses have: inside the client, without balance, and other networks without a defense."""
    for place in PLACES if chain.startswith(PLACED) else ():
        if place in wanted:
            note(replace(pictures(chain, seed, 1, partial(picture_scene, place=place)), measure=place))
    if chain == "precode()" and "unbalanced" in wanted:
        note(replace(pictures(chain, seed, 1, attacks=UNBALANCED), measure="unbalanced"))
    for net in sorted(wanted & set(OTHER_NETS)) if chain == "none" else ():
        note(replace(pictures(chain, seed, 1, partial(picture_scene, net=net)), measure=net))


def measure_all(chain: str, seed: int, wanted: set[str]) -> None:
    """The measures of one defense with one seed, a line for each."""
    for task in sorted(wanted & set(TASKS)):
        note(trained(task, chain, seed))
    if wanted - set(TASKS):
        attack_all(chain, seed, wanted)


def note(cell: Cell) -> None:
    """Stores a cell, with commit and machine, and says so."""
    append(replace(cell, commit=str(origin.commit()), machine=f"{origin.processor()}, {os.cpu_count()} cores"))
    shown = cell.reason or ", ".join(f"{name} {value:.3g}" for name, value in cell.values.items())
    print(f"{cell.measure} | {cell.defense} | seed {cell.seed} | {cell.seconds:.1f} CPU s | {shown}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = ["pictures", *OTHER_NETS, *PLACES, "unbalanced", "rank", "texts", "topics", "digits"]
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--measures", nargs="*", default=everything, choices=everything)
    parser.add_argument("--defenses", nargs="*", help="only these; all of the catalogue otherwise")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    chains = arguments.defenses or ("none", *settings())
    for seed in range(arguments.seeds):
        for chain in chains:
            there = {cell.measure for cell in read() if (cell.defense, cell.seed) == (chain, seed)}
            measure_all(chain, seed, set(arguments.measures) - there)


if __name__ == "__main__":
    main()
