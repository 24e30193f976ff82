"""What one iteration of a matching attack costs beside a bare hand-written loop for the same loss on the same model.

    python -m benchmarks.matching.matching_cost

Prints seconds per iteration (wall and CPU) of both, interleaved in one process, and the ratio of the medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.func import functional_call

from benchmarks.common import run
from gradleak.attacks.dlg import DLG
from gradleak.attacks.inverting_gradients import InvertingGradients
from gradleak.attacks.tag import TAG
from gradleak.core.batch import Batch, soft_labels
from gradleak.core.knowledge import View
from gradleak.matching import engine as inversion
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import load_subject

SENTENCE = "the patient was admitted with chest pain ."


def cases() -> tuple[dict[str, tuple[Callable[[], None], Callable[[], None]]], int]:
    """Objective → (our iteration, the bare one), and the number of tokens."""
    subject = load_subject("minilm", loss="classification", classes=2)
    assert subject.tokenizer is not None
    ids, mask = subject.tokenizer.encode([SENTENCE], 32)
    trainer = ClientTrainer(subject=subject, training=LocalTraining())
    update = trainer.update(Batch(inputs=ids, mask=mask, labels=torch.tensor([1])), torch.Generator())
    facts = {"subject": subject, "trainer": trainer, "batch_size": 1, "seq_len": ids.shape[1]}
    view = View(declared=inversion.NEEDS | inversion.USES, _facts=facts)
    problem = inversion.pose(update, view, TAG(balance=0.0).parts("text"))
    u = torch.randn(1, *problem.space.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()

    names = [n for n in trainer.names() if n in problem.observed]
    weights = {n: p.detach().requires_grad_(n in problem.observed) for n, p in subject.parameters().items()}
    target = [problem.observed[n] for n in names]
    label = soft_labels(torch.tensor([1]), 2)

    def bare(distance: Callable[[list[torch.Tensor], list[torch.Tensor]], torch.Tensor]) -> None:
        x = problem.inputs(u)[0]
        arguments = {"inputs_embeds": x, "attention_mask": torch.ones(x.shape[:2], dtype=torch.long)}
        logits = functional_call(subject.module, weights, (), arguments).logits
        loss = -(label * logits.log_softmax(-1)).sum()
        gradients = torch.autograd.grad(loss, [weights[n] for n in names], create_graph=True)
        torch.autograd.grad(distance(list(gradients), target), u)

    def l2(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([(x - y).square().sum() for x, y in zip(a, b, strict=True)]).sum()

    def l2_l1(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
        return l2(a, b) + 0.01 * torch.stack([(x - y).abs().sum() for x, y in zip(a, b, strict=True)]).sum()

    def cosine(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
        inner = torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()
        square = torch.stack([x.square().sum() for x in a]).sum() * sum(float(y.square().sum()) for y in b)
        return 1 - inner / square.sqrt()

    def ours(parts: inversion.Matching) -> Callable[[], None]:
        function = inversion.objective_function(problem, parts)
        return lambda: void(torch.autograd.grad(function({"inputs": u}).sum(), u))

    def void(_: object) -> None: ...

    return {
        "dlg (L2)": (ours(DLG(balance=0.0).parts("text")), lambda: bare(l2)),
        "tag (L2 + L1)": (ours(TAG(balance=0.0).parts("text")), lambda: bare(l2_l1)),
        "inverting_gradients (cosine)": (
            ours(InvertingGradients(balance=0.0).parts("text")),
            lambda: bare(cosine),
        ),
    }, ids.shape[1]


def timed(function: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Wall and CPU seconds per call, after one call that is not counted."""
    function()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats


def print_page(rounds: int = 7, per_round: int = 5) -> None:
    pairs, tokens = cases()
    print(f"MiniLM, 1 record of {tokens} tokens, {torch.get_num_threads()} threads, median of {rounds} rounds\n")
    print("| objective | ours wall s | bare wall s | ours CPU s | bare CPU s | ratio wall | ratio CPU |")
    print("|---" * 7 + "|")
    for name, (ours, bare) in pairs.items():
        rows = [(*timed(ours, per_round), *timed(bare, per_round)) for _ in range(rounds)]
        w0, c0, w1, c1 = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {name} | {w0:.4f} | {w1:.4f} | {c0:.4f} | {c1:.4f} | {w0 / w1:.2f} | {c0 / c1:.2f} |")


def main(argv: Sequence[str] | None = None) -> None:
    reader = run.parser(__doc__)
    asked = run.parse(reader, argv)
    with run.record(__file__, asked, seeds=(0,)):
        print_page()


if __name__ == "__main__":
    main()
