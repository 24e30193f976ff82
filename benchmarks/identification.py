"""What do the heuristic defenses leave of a private record in a closed world? Rank of the true one among 20, by defense.

    python benchmarks/identification.py [--model random:bert] [--repeats 5] [--decoys 19]

Prints the mean rank (1 is best, 10.5 of 20 is chance) of an attacker who knows the defense and of one who does not, the
adaptive minus the naive rank with its Student 95 % interval over batches, and how often the adaptive attacker has the
private record first. Same batches and same releases for both.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from scipy import stats

from gradleak.attacks.identification import Identification
from gradleak.audit.catalogue import make_stages
from gradleak.audit.prepare import Request, prepare
from gradleak.core.channel import Channel
from gradleak.core.knowledge import Knowledge
from gradleak.core.observation import Observation
from gradleak.core.rng import derive
from gradleak.mechanics.training import ClientTrainer, LocalTraining

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
DEFENSES = [
    "none", "clip(max_norm=0.01)", "gaussian(relative_std=1.0)", "gaussian(relative_std=10.0)", "prune(fraction=0.99)",
    "random_mask(fraction=0.99)", "low_rank(rank=1)", "sign()", "qsgd(levels=4)", "ada_defense()", "dgc(fraction=0.99)",
    "soteria(fraction=0.5)", "outpost()", "grad_defense()",
    "grad_defense(std=1.0)", "censor()", "token_shadow()", "frozen_embeddings()", "frozen_blocks(blocks=1)",
]  # fmt: skip


def ranks(model: str, chain: str, repeats: int, decoys: int) -> list[tuple[int, int]]:
    """Adaptive and naive rank of the private record, one pair for every batch."""
    prepared = prepare(Request(model=model, attacks="identification", max_length=16, settings=SMALL))
    found: list[tuple[int, int]] = []
    for repeat in range(repeats):
        batch, others = prepared.source.draw(derive(0, "batch", repeat))
        truth = batch.records()[0]
        world = [truth, *others.records(prepared.subject, max_length=16)[:decoys]]
        order = torch.randperm(len(world), generator=derive(0, "order", repeat)).tolist()
        trainer = ClientTrainer(subject=prepared.subject, training=LocalTraining())
        channel = Channel(trainer=trainer, stages=make_stages(chain))
        deployed = channel.deployed()
        facts = {"subject": deployed.subject, "trainer": deployed, "batch_size": 1}
        facts |= {"candidates": tuple(world[place] for place in order)}
        update = channel.observe(batch, derive(0, "channel", repeat))
        pair = []
        for known in ({"stages": channel.stages}, {}):
            observation = Observation(update=update, knowledge=Knowledge(facts=facts | known))
            ranking = Identification()(observation, rng=derive(0, "attack", repeat)).ranking
            pair.append(1 + next(place for place, record in enumerate(ranking) if torch.equal(record, truth)))
        found.append((pair[0], pair[1]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:bert")
    parser.add_argument("--defenses", nargs="*", default=DEFENSES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--decoys", type=int, default=19)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| defense | adaptive rank | naive rank | adaptive − naive [95 % interval] | first |\n|---|---|---|---|---|")
    for chain in arguments.defenses:
        pairs = ranks(arguments.model, chain, arguments.repeats, arguments.decoys)
        gains = [adaptive - naive for adaptive, naive in pairs]
        spread = statistics.stdev(gains) / len(gains) ** 0.5
        reach = float(stats.t.ppf(0.975, len(gains) - 1)) * spread
        mean = statistics.fmean(gains)
        print(
            f"| {chain} | {statistics.fmean(a for a, _ in pairs):.1f} | {statistics.fmean(n for _, n in pairs):.1f} "
            f"| {mean:+.1f} [{mean - reach:+.1f}, {mean + reach:+.1f}] "
            f"| {sum(a == 1 for a, _ in pairs)} of {len(pairs)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
