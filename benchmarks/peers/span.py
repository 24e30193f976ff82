"""Our span attack on a captured observation, as ``dager.py`` runs the peer: same folders in, same JSON out.

    python benchmarks/peers/span.py OBSERVATION WEIGHTS [--seq-len N]

The manifest of the observation says what the adversary knows; ``--seq-len`` adds the padded length. Without the client's
training the adversary cannot recompute the update, so the time is that of the search alone, as is the peer's.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import torch

from gradleak.attacks.span import Span
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.harness.captured.loading import load_observation
from gradleak.models import load_subject


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("observation", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--seq-len", type=int)
    asked = parser.parse_args()
    observation = load_observation(asked.observation, load_subject(asked.weights, loss="classification"))
    if asked.seq_len is not None:
        facts = {**observation.knowledge.facts, "seq_len": asked.seq_len}
        observation = Observation(update=observation.update, knowledge=Knowledge(facts=facts))
    wall, cpu = time.perf_counter(), time.process_time()
    found = Span()(observation, rng=derive(0, "attack"))
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    report = {
        "proposals": [{"ids": record.tolist(), "accepted": True} for record in found.records],
        "seconds": seconds,
        "status": found.status.name,
        "message": found.message,
        "versions": {"torch": torch.__version__, **{name: version(name) for name in ("transformers", "numpy")}},
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
