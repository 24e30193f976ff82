"""What a language prior adds to `span` where noise leaves an update undecided, beside the update alone and the prior alone.

    python -m benchmarks.span.prior

A small causal language model (GPT-2 of width 128, two blocks, MiniLM's 30,522 word pieces), batches of 4 records of 6 to 12 tokens of real English,
Gaussian noise relative to the root mean square of each tensor, measured by the attack. The private text is every third of scikit-learn's data set
descriptions; priors are counts (`span/language/ngram.py`) of the other descriptions and of Python's help topics. **none** is `span` as it is without a prior
(where its answer has no order it counts as nothing in place), **uniform** the search of this page without preference: the update alone. **good** is
that prior, **latin** a wrong one (made-up Latin of Faker), **alone** the good prior without the update: the likeliest texts of padded length. Recall is of private
tokens in their place, records matched one-to-one; under a language-model loss the last token of a record is invisible (the title of each table says what can be had).
A search with a prior starts from the records of the
update alone as well as from nothing, so it looks longer; *latin* has that, too. **wrong** counts proposed tokens that are not in place, **owed** those of the good prior's proposal that the update alone does not say, and **right of owed**
those of them in place. **claimed** is the mean of what `span` says of its tokens, beside the fraction that is in place. Intervals are Student's over batches (95 %)
of the difference to *uniform*. Seeds 100 ... were used for nothing else; the search was made on seeds 0 to 2 of text from the whole of the descriptions.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import sklearn.datasets
import torch
from faker import Faker
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from benchmarks.common import run
from benchmarks.span.noise import with_interval
from gradleak.attacks.span import Span
from gradleak.core.attack import Clock, Reconstruction, Status
from gradleak.core.batch import IGNORED, Batch
from gradleak.core.knowledge import Knowledge, Observation
from gradleak.core.rng import derive
from gradleak.defenses.gaussian import Gaussian
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, load_subject
from gradleak.span.language.language_model import load_prior
from gradleak.span.with_prior.posterior import Problem, maximize_posterior

SIZES = {"n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 30522, "initializer_range": 0.05}
RECORDS, LENGTH, SECONDS = 4, 12, 240.0
PRIORS = ("none", "uniform", "good", "latin")


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """The private stream of token ids, and files with text for priors."""

    private: list[int]
    files: Mapping[str, str]

    @staticmethod
    def of(subject: Subject, folder: Path) -> Texts:
        descriptions = sorted((Path(sklearn.datasets.__file__).parent / "descr").glob("*.rst"))
        private = " ".join(path.read_text(encoding="utf-8") for path in descriptions[::3])
        public = [path.read_text(encoding="utf-8") for i, path in enumerate(descriptions) if i % 3]
        lines = [_plain(line) for text in (*public, *pydoc_data.topics.topics.values()) for line in text.split("\n\n")]
        (folder / "good.txt").write_text("\n".join(lines), encoding="utf-8")
        faker = Faker("la")
        faker.seed_instance(0)
        (folder / "latin.txt").write_text("\n".join(faker.text(400) for _ in range(1000)), encoding="utf-8")
        assert subject.tokenizer is not None
        ids = subject.tokenizer.encode([_plain(private)], 10**6)[0][0, 1:-1].tolist()
        return Texts(private=ids, files={name: str(folder / f"{name}.txt") for name in ("good", "latin")})


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.,;:()-]+", " ", text).strip()


def make_batch(texts: Texts, loss: str, seed: int) -> Batch:
    rng = derive(seed, "span-prior")
    starts = torch.randint(len(texts.private) - LENGTH, (RECORDS,), generator=rng).tolist()
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (RECORDS,), generator=rng).index_fill(0, torch.tensor([0]), LENGTH)
    mask = torch.arange(LENGTH) < lengths.unsqueeze(1)
    ids = torch.tensor([texts.private[s : s + LENGTH] for s in starts]).masked_fill(~mask, 0)
    labels = ids.masked_fill(~mask, IGNORED) if loss == "causal-lm" else torch.arange(RECORDS) % 2
    return Batch(inputs=ids, mask=mask, labels=labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hits:
    """Of one proposal: which proposed tokens are in place, by record; records given whole (but for an invisible last token)."""

    inside: list[list[bool]]
    whole: int
    total: int

    @staticmethod
    def of(records: Sequence[Tensor], batch: Batch, *, hidden: int) -> Hits:
        truth = [record.tolist() for record in batch.records()]
        proposed = [record.tolist() for record in records]
        table = [[sum(a == b for a, b in zip(ids, true, strict=False)) for true in truth] for ids in proposed]
        match = (
            dict(zip(*(s.tolist() for s in linear_sum_assignment(table, maximize=True)), strict=True)) if table else {}
        )
        true = [truth[match[i]] if i in match else [] for i in range(len(proposed))]
        inside = [
            [p < len(t) and t[p] == token for p, token in enumerate(ids)] for ids, t in zip(proposed, true, strict=True)
        ]
        whole = sum(
            len(ids) >= len(t) - hidden and ids == t[: len(ids)] for ids, t in zip(proposed, true, strict=True) if t
        )
        return Hits(inside=inside, whole=whole, total=sum(map(len, truth)))

    @property
    def right(self) -> int:
        return sum(map(sum, self.inside))

    @property
    def recall(self) -> float:
        return self.right / self.total

    @property
    def wrong(self) -> int:
        return sum(map(len, self.inside)) - self.right


def owed(good: Reconstruction, alone: Reconstruction, hits: Hits) -> tuple[int, int]:
    """Tokens that the update alone does not say, and how many of them are in place."""
    table = [[int((a[: len(b)] == b[: len(a)]).sum()) for b in alone.records] for a in good.records]
    match = dict(zip(*(s.tolist() for s in linear_sum_assignment(table, maximize=True)), strict=True)) if table else {}
    new = [
        right
        for i, ids in enumerate(good.records)
        for p, right in enumerate(hits.inside[i])
        if i not in match or p >= len(alone.records[match[i]]) or alone.records[match[i]][p] != ids[p]
    ]
    return len(new), sum(new)


def measure(subject: Subject, texts: Texts, noise: float, seed: int) -> dict[str, float]:
    batch = make_batch(texts, subject.loss.name, seed)
    hidden = int(subject.loss.name == "causal-lm")
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed, "training"))
    released = Gaussian(relative_std=noise).apply(update, derive(seed, "noise", noise))
    facts = {"subject": subject, "batch_size": RECORDS, "seq_len": LENGTH}
    observation = Observation(update=released, knowledge=Knowledge(facts=facts))
    found: dict[str, Reconstruction] = {}
    result: dict[str, float] = {}
    for name in PRIORS:
        prior = None if name == "none" else texts.files.get(name, name)
        began = time.process_time()
        found[name] = Span(prior=prior)(observation, rng=derive(seed, "attack"), clock=Clock(SECONDS))
        result[f"{name} seconds"] = time.process_time() - began
        hits = Hits.of(found[name].records if found[name].ordered else (), batch, hidden=hidden)
        result |= {f"{name} recall": hits.recall, f"{name} whole": hits.whole, f"{name} wrong": hits.wrong}
        claims = torch.cat([*found[name].confidence, torch.zeros(0)]) if found[name].ordered else torch.zeros(0)
        result |= {f"{name} claimed": float(claims.sum()), f"{name} tokens": len(claims), f"{name} right": hits.right}
        result[f"{name} bold"] = float(found[name].status in (Status.EXACT, Status.CONVERGED) and hits.wrong > 0)
        result[f"{name} decided"] = float(found[name].status in (Status.EXACT, Status.CONVERGED))
        result[f"{name} spent"] = float(found[name].status is Status.BUDGET_SPENT)
        if name == "good":
            result["owed"], result["owed right"] = owed(found["good"], found["uniform"], hits)
    return result


def alone(subject: Subject, texts: Texts) -> tuple[Tensor, ...]:
    """What the good prior says without an update."""
    nothing = (torch.empty(0, dtype=torch.int64),) * LENGTH
    prior = load_prior(texts.files["good"], subject)
    problem = Problem(evidence=None, prior=prior, options=nothing, closed=False, records=RECORDS)
    return maximize_posterior(problem.withheld(LENGTH), Clock()).records


def report(loss: str, levels: Sequence[float], seeds: Sequence[int], folder: Path) -> None:
    subject = load_subject("random:gpt2", loss=loss, settings=SIZES)
    texts = Texts.of(subject, folder)
    hidden = int(loss == "causal-lm")
    batches = [make_batch(texts, loss, seed) for seed in seeds]
    guess = alone(subject, texts)
    guessed = mean(Hits.of(guess, batch, hidden=hidden).recall for batch in batches)
    most = mean(1 - hidden * RECORDS / int(batch.mask.sum()) for batch in batches)
    print(f"\n## Loss {loss}: at most {most:.3f} can be had; prior alone {guessed:.3f}\n")
    print(
        "| noise | batches (decided without prior) | recall: none | uniform | good | good − uniform | latin | latin − uniform "
        "| whole records of "
        f"{RECORDS * len(seeds)}: none / uniform / good / latin | wrong: uniform / good / latin | owed | right of owed "
        "| claimed, right: uniform | good | decided with wrong tokens | CPU s: none / uniform / good |\n"
        + "|---" * 16
        + "|"
    )
    for noise in levels:
        rows = [measure(subject, texts, noise, seed) for seed in seeds]
        total = {key: sum(row[key] for row in rows) for key in rows[0]}
        recall = {name: total[f"{name} recall"] / len(rows) for name in PRIORS}
        gap = {n: with_interval([r[f"{n} recall"] - r["uniform recall"] for r in rows]) for n in ("good", "latin")}
        per = max(1.0, total["uniform tokens"]), max(1.0, total["good tokens"])
        sure = [
            f"{total[n + ' claimed'] / count:.3f}, {total[n + ' right'] / count:.3f}"
            for n, count in zip(("uniform", "good"), per, strict=True)
        ]
        whole = " / ".join(f"{total[n + ' whole']:.0f}" for n in PRIORS)
        wrong = " / ".join(f"{total[n + ' wrong']:.0f}" for n in PRIORS[1:])
        seconds = " / ".join(f"{total[n + ' seconds'] / len(rows):.1f}" for n in PRIORS[:3])
        print(
            f"| {noise:g} | {len(rows)} ({total['none decided']:.0f}) | {recall['none']:.3f} | {recall['uniform']:.3f} | {recall['good']:.3f} "
            f"| {gap['good']} | {recall['latin']:.3f} | {gap['latin']} | {whole} | {wrong} "
            f"| {total['owed']:.0f} | {total['owed right']:.0f} | {sure[0]} | {sure[1]} "
            f"| {sum(total[n + ' bold'] for n in PRIORS):.0f} | {seconds} |",
            flush=True,
        )


def print_page(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print("# A language prior beside the update alone and the prior alone\n")
    print("Printed by `python -m benchmarks.span.prior`, whose first lines say what the columns are.")
    with tempfile.TemporaryDirectory() as folder:
        for loss in asked.losses:
            report(loss, asked.levels, range(*asked.seeds), Path(folder))


def main(argv: Sequence[str] | None = None) -> None:
    parser = run.parser(__doc__)
    parser.add_argument("--seeds", nargs=2, type=int, default=(100, 105), metavar=("FIRST", "END"))
    parser.add_argument("--levels", nargs="*", type=float, default=(0.1, 0.3, 1.0, 2.0))
    parser.add_argument("--losses", nargs="*", default=("causal-lm", "classification"))
    asked = run.parse(parser, argv)
    with run.record(__file__, asked, seeds=range(*asked.seeds)):
        print_page(asked)


if __name__ == "__main__":
    main()
