"""Three readers of one noisy value gradient, on a small causal language model: the span check, a position-constrained exchange
search, and the forecast of the token test. Imported by ``theory.py`` and by a test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor

from gradleak.core.batch import Batch
from gradleak.core.loss import CAUSAL_LM
from gradleak.core.rng import derive
from gradleak.mechanics.client.trainer import ClientTrainer, LocalTraining
from gradleak.models import Subject, read_anatomy
from gradleak.theory.identifiability.gradient_flow import flow_through
from gradleak.theory.noise.token_power import TokenTest, mean_power, strengths

VOCAB, WIDTH, TOKENS = 2000, 128, 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Toy:
    """One record of a two-layer model, its clean value gradient, and every candidate input.

    Attributes:
        gradient: dL/dW_V of the first layer, ``[features outputs]``; norm: of the whole gradient.
        candidates: input of every token at every position, ``[positions vocab features]``.
        truth: token at each position that the gradient can hold (a language model's last one has no signal).
        inputs, errors: the factors of the gradient at those positions.
    """

    gradient: Tensor
    norm: float
    candidates: Tensor
    truth: Tensor
    inputs: Tensor
    errors: Tensor


def make_toy(seed: int) -> Toy:
    """Embeddings with a common mean and a power-law spectrum, as trained ones have; the rest as initialized."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        # Power-law embeddings around a common mean, positions of the same size, as in trained decoders.
        spectrum = torch.arange(1, WIDTH + 1) ** -0.5
        spectrum = 0.1 * spectrum / spectrum.square().mean().sqrt()
        turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
        module.get_input_embeddings().weight.copy_(
            (torch.randn(VOCAB, WIDTH) + 0.5 * torch.randn(WIDTH)) * spectrum @ turn
        )
        module.get_parameter("transformer.wpe.weight").normal_(std=0.1)
    subject = Subject(
        name="toy", module=module, anatomy=read_anatomy(module), tokenizer=None, loss=CAUSAL_LM, classes=VOCAB
    )
    ids = torch.randperm(VOCAB, generator=derive(seed, "ids"))[:TOKENS].unsqueeze(0)
    batch = Batch(inputs=ids, mask=torch.ones_like(ids, dtype=torch.bool), labels=ids)
    path = subject.anatomy.blocks[0].attention_inputs[0].module
    flow = flow_through(subject, batch, (path,))[path]
    update = ClientTrainer(subject=subject, training=LocalTraining()).update(batch, derive(seed, "none"))
    norm = math.sqrt(sum(float(t.double().square().sum()) for t in update.values()))
    seen = TOKENS - 1
    every = torch.arange(VOCAB).unsqueeze(1).expand(-1, seen)
    with torch.no_grad():
        embedded = subject.embed(every) + module.get_parameter("transformer.wpe.weight")[:seen]
        candidates = module.get_submodule("transformer.h.0.ln_1")(embedded).transpose(0, 1).double()
    inputs, errors = flow.inputs[0, :seen].double(), flow.errors[0, :seen, 2 * WIDTH :].double()
    return Toy(
        gradient=inputs.T @ errors, norm=norm, candidates=candidates, truth=ids[0, :seen], inputs=inputs, errors=errors
    )


def span_check(toy: Toy, noisy: Tensor) -> Tensor:
    """Per position the token with the smallest residual to the span of as many directions as there are tokens."""
    basis = torch.linalg.svd(noisy)[0][:, : len(toy.truth)]
    inside = (toy.candidates @ basis).norm(dim=-1) / toy.candidates.norm(dim=-1)
    return inside.argmax(dim=1)


def exchange(toy: Toy, noisy: Tensor, *, sweeps: int = 10, kicks: int = 8) -> Tensor:
    """Per position the token with the largest T, the tokens of all other positions projected out; until nothing changes.

    From an empty start and from the span check; then a third of the positions is emptied and filled again, ``kicks`` times.
    The lowest residual wins: the truth is not asked.
    """
    empty = torch.full((len(toy.truth),), -1)
    best = min(
        (_settle(toy, noisy, start, sweeps) for start in (empty, span_check(toy, noisy))),
        key=lambda ids: _residual(toy, noisy, ids),
    )
    rng = torch.Generator().manual_seed(0)
    for _ in range(kicks):
        kicked = best.masked_fill(torch.rand(len(best), generator=rng) < 1 / 3, -1)
        best = min(best, _settle(toy, noisy, kicked, sweeps), key=lambda ids: _residual(toy, noisy, ids))
    return best


def _chosen(toy: Toy, ids: Tensor, places: list[int]) -> Tensor:
    return torch.stack([toy.candidates[p, ids[p]] for p in places])


def _score(candidates: Tensor, others: Tensor, noisy: Tensor) -> Tensor:
    if len(others):
        basis = torch.linalg.qr(others.T).Q
        candidates = candidates - (candidates @ basis) @ basis.T
    return (candidates @ noisy).square().sum(-1) / candidates.square().sum(-1).clamp(min=1e-12)


def _settle(toy: Toy, noisy: Tensor, start: Tensor, sweeps: int) -> Tensor:
    """Sweeps over the positions; those still empty (−1) are filled first and not projected out before."""
    ids = start.clone()
    order = start.ge(0).long().argsort(stable=True).tolist()
    for _ in range(sweeps):
        before = ids.clone()
        for p in order:
            places = [q for q in range(len(ids)) if q != p and ids[q] >= 0]
            ids[p] = _score(toy.candidates[p], _chosen(toy, ids, places) if places else noisy[:0], noisy).argmax()
        if torch.equal(ids, before):
            break
    return ids


def _residual(toy: Toy, noisy: Tensor, ids: Tensor) -> float:
    basis = torch.linalg.qr(_chosen(toy, ids, list(range(len(ids)))).T).Q
    return float((noisy - basis @ (basis.T @ noisy)).norm())


def told_the_others(toy: Toy, noisy: Tensor) -> Tensor:
    """Per position the token with the largest T when all other tokens are known: no search can do better on average."""
    places = list(range(len(toy.truth)))
    return torch.stack(
        [
            _score(toy.candidates[p], _chosen(toy, toy.truth, [q for q in places if q != p]), noisy).argmax()
            for p in places
        ]
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recalls:
    """Shares of tokens at the right position."""

    span: float
    exchange: float
    told: float
    forecast: float


def recalls(noise: float, seeds: range) -> Recalls:
    """Mean recall over toys at noise ``noise`` in units of the norm of the whole gradient."""
    rows = []
    for seed in seeds:
        toy = make_toy(seed)
        std = noise * toy.norm
        noisy = toy.gradient + std * torch.randn(toy.gradient.shape, generator=derive(seed, noise), dtype=torch.float64)
        test = TokenTest(columns=WIDTH, candidates=VOCAB * len(toy.truth))
        readers = (span_check, exchange, told_the_others)
        rows.append(
            [float((reader(toy, noisy) == toy.truth).double().mean()) for reader in readers]
            + [mean_power(test, strengths(toy.inputs, toy.errors), std)]
        )
    mean = torch.tensor(rows).mean(0).tolist()
    return Recalls(span=mean[0], exchange=mean[1], told=mean[2], forecast=mean[3])
