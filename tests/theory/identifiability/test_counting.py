"""The counting law against numerical ranks of the Jacobian of the gradient in the data: an exact grid."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from gradleak.core.errors import SpecError
from gradleak.mechanics.attention.softmax import Heads, data_jacobian
from gradleak.theory.identifiability.counting import AttentionShape, Uniqueness, expected_rank, identify, unknowns

pytestmark = pytest.mark.oracle


def heads_of(width: int, heads: int, seed: int) -> Heads:
    rng = torch.Generator().manual_seed(seed)
    k = width // heads

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64) / math.sqrt(width)

    return Heads(
        query=random(heads, width, k),
        key=random(heads, width, k),
        value=random(heads, width, k),
        output=random(heads, k, width),
        scale=1 / math.sqrt(k),
    )


def jacobian(
    width: int, heads: int, records: int, tokens: int, *, known: bool, copies: tuple[bool, bool] = (False, False)
) -> torch.Tensor:
    """J of the mean gradient of all records in all data; ``copies``: second token, its target equal the first ones."""
    layer = heads_of(width, heads, seed=0)
    rng = torch.Generator().manual_seed(1)
    x, b = (torch.randn(records, tokens, width, generator=rng, dtype=torch.float64) for _ in range(2))
    for data, same in zip((x, b), copies, strict=True):
        if same:
            data[:, 1] = data[:, 0]
    blocks = [data_jacobian(layer.layer().at(x[i], b[i]), layer, with_targets=not known) for i in range(records)]
    return torch.cat(blocks, dim=-1)


def rank(matrix: torch.Tensor) -> int:
    s = torch.linalg.svdvals(matrix)
    return int((s > 1e-9 * s[0]).sum())


SINGLE = [
    (width, heads, tokens, known)
    for width, heads, known in itertools.product((4, 6, 8), (1, 2, 4), (True, False))
    if width % heads == 0
    for tokens in (2, width // 2, width, width + 1, 2 * width, 2 * width + 1, 3 * width, 4 * width)
]
BATCHES = [
    (4, heads, records, tokens, known)
    for heads in (1, 2)
    for records in (2, 3)
    for tokens in (3, 4)
    for known in (True, False)
]


@pytest.mark.parametrize(("width", "heads", "known"), sorted({(w, h, k) for w, h, _, k in SINGLE}))
def test_the_grid_is_exact(width: int, heads: int, known: bool) -> None:
    """Every number of tokens: below, at and beyond the transition, and the single head's missing direction."""
    shape = AttentionShape.plain(width, heads)
    for tokens in sorted({t for w, h, t, k in SINGLE if (w, h, k) == (width, heads, known)}):
        found = rank(jacobian(width, heads, 1, tokens, known=known))
        assert found == expected_rank(shape, records=1, tokens=tokens, targets_known=known), tokens


@pytest.mark.parametrize(("width", "heads", "records", "tokens", "known"), BATCHES)
def test_batches_are_exact(width: int, heads: int, records: int, tokens: int, known: bool) -> None:
    shape = AttentionShape.plain(width, heads)
    found = rank(jacobian(width, heads, records, tokens, known=known))
    assert found == expected_rank(shape, records=records, tokens=tokens, targets_known=known)


def test_known_transitions() -> None:
    """From the notes: width 8, one head, known targets: full at 16 tokens, deficient at 17; a batch of 3 × 4 at width 4."""
    one = AttentionShape.plain(8, 1)
    assert one.equations == 2 * 64
    assert expected_rank(one, records=1, tokens=16, targets_known=True) == unknowns(
        one, records=1, tokens=16, targets_known=True
    )
    assert expected_rank(one, records=1, tokens=17, targets_known=True) < 17 * 8
    small = [AttentionShape.plain(4, heads) for heads in (1, 2)]
    assert [expected_rank(s, records=3, tokens=4, targets_known=True) for s in small] == [32, 48]


def general_gradient(shape: AttentionShape, seed: int = 0) -> tuple[torch.Tensor, int]:
    """Rank of the Jacobian of a layer's gradient in inputs and errors, with biases, grouped keys and rotations."""
    rng = torch.Generator().manual_seed(seed)
    tokens = 3 * shape.width
    kinds = {"q": shape.heads, "k": shape.kv_heads, "v": shape.kv_heads}

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    weights = {n: random(shape.width, h * shape.head_width) / math.sqrt(shape.width) for n, h in kinds.items()}
    weights["o"] = random(shape.heads * shape.head_width, shape.width)
    if shape.biases:
        weights |= {f"b{n}": random(h * shape.head_width) for n, h in kinds.items()} | {"bo": random(shape.width)}
    angle = torch.arange(tokens).double()[:, None] * (0.3 + torch.arange(shape.head_width // 2).double())

    def turn(x: torch.Tensor) -> torch.Tensor:
        if not shape.rotary:
            return x
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack(
            (even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()), -1
        ).flatten(-2)

    def split(x: torch.Tensor, heads: int) -> torch.Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(0, 1).repeat_interleave(shape.heads // heads, 0)

    def output(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        q, k, v = (split(x @ w[n] + w.get(f"b{n}", torch.zeros(1)), h) for n, h in kinds.items())
        attended = torch.softmax(turn(q) @ turn(k).mT / math.sqrt(shape.head_width), -1) @ v
        return attended.transpose(0, 1).flatten(1) @ w["o"] + w.get("bo", torch.zeros(1))

    def gradient(x: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
        leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
        value = (output(leaves, x) * error).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(leaves.values()), create_graph=True)])

    # Two sequences of many tokens: more unknowns than the gradient has entries.
    blocks = []
    for _ in range(2):
        x, error = random(tokens, shape.width), random(tokens, shape.width)
        blocks += [each.flatten(1) for each in torch.autograd.functional.jacobian(gradient, (x, error))]
    found = torch.cat(blocks, dim=1)
    return found, found.shape[0]


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(
    ("width", "heads", "kv_heads", "head_width"), [(4, 2, 2, 2), (4, 2, 1, 2), (6, 1, 1, 4), (4, 4, 2, 2)]
)
def test_independent_equations_of_real_layers(
    width: int, heads: int, kv_heads: int, head_width: int, rotary: bool, biases: bool
) -> None:
    """Beyond the law of the notes: grouped keys, head widths that are no share of the width, rotations, biases."""
    shape = AttentionShape(
        width=width, heads=heads, kv_heads=kv_heads, head_width=head_width, biases=biases, rotary=rotary
    )
    matrix, entries = general_gradient(shape)
    assert (entries, rank(matrix)) == (shape.weights, shape.equations)


def test_a_double_with_the_same_target_is_a_continuum_and_alone_is_not() -> None:
    for copies, full in (((True, False), True), ((True, True), False)):
        matrix = jacobian(8, 2, 1, 4, known=True, copies=copies)
        assert (rank(matrix) == 32) is full
    verdict = identify(AttentionShape.plain(8, 2), records=1, tokens=4, targets_known=True, duplicates=True)
    assert verdict.uniqueness is Uniqueness.CONTINUUM


@pytest.mark.parametrize(
    ("heads", "tokens", "known", "expected"),
    [
        (2, 4, True, Uniqueness.UNIQUE),
        (2, 4, False, Uniqueness.UP_TO_SYMMETRY),
        (1, 4, False, Uniqueness.CONTINUUM),
        (1, 16, True, Uniqueness.UP_TO_SYMMETRY),
        (1, 17, True, Uniqueness.UNDERDETERMINED),
    ],
)
def test_verdicts(heads: int, tokens: int, known: bool, expected: Uniqueness) -> None:
    verdict = identify(AttentionShape.plain(8, heads), records=1, tokens=tokens, targets_known=known)
    assert verdict.uniqueness is expected
    assert verdict.reason.endswith(".") and "unknowns" in verdict.reason


def test_what_stays_open_is_really_open() -> None:
    """Permutation and sign of tokens with their targets leave the gradient as it is; with known targets nothing does."""
    layer = heads_of(8, 2, seed=0)
    rng = torch.Generator().manual_seed(3)
    x, b = (torch.randn(4, 8, generator=rng, dtype=torch.float64) for _ in range(2))
    start = layer.split(layer.layer().at(x, b).gradient()).flat()
    order = torch.tensor([2, 0, 3, 1])
    for other_x, other_b in ((x[order], b[order]), (-x, -b)):
        assert torch.allclose(layer.split(layer.layer().at(other_x, other_b).gradient()).flat(), start, atol=1e-12)
        assert not torch.allclose(layer.split(layer.layer().at(other_x, b).gradient()).flat(), start, atol=1e-3)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(SpecError, match="multiple"):
        AttentionShape.plain(8, 3)
    with pytest.raises(SpecError, match="divide"):
        AttentionShape(width=8, heads=4, kv_heads=3, head_width=2)
    with pytest.raises(SpecError, match="odd"):
        AttentionShape(width=6, heads=2, kv_heads=2, head_width=3, rotary=True)


def test_perfectly_fitted_data_have_the_gradient_of_any_other_fitted_data() -> None:
    layer = heads_of(8, 2, seed=0)
    rng = torch.Generator().manual_seed(4)
    for _ in range(2):
        x = torch.randn(4, 8, generator=rng, dtype=torch.float64)
        fitted = layer.layer().at(x, layer.layer().output(x))
        assert float(layer.split(fitted.gradient()).flat().abs().max()) < 1e-12
    verdict = identify(AttentionShape.plain(8, 2), records=1, tokens=4, targets_known=True, fitted=True)
    assert verdict.uniqueness is Uniqueness.CONTINUUM
