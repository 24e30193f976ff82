"""The directions that a gradient in units of its noise holds can be had at three prices: from a few random sums of its
outputs where they are clear, by a randomized range finder where they are few, from the Gram matrix otherwise. These are the
three, and the rank that the singular values allow. Must not know number formats, models, attacks or search.

Rounding of sums has a size that nobody knows in advance, but a law: behind r true directions there remains a matrix of noise N with
(features − r) × (outputs − r) free entries, whose size s follows from its energy. The entries of a row are as large as that row's partial
sums, so Var N_ij = s² a_i², and the largest singular value of N tends to s √n · (min_m z(m))^½ with

    z(m) = 1/m + (1/n) Σ_i a_i² / (1 − a_i² m),    0 < m < 1 / max a²,    n = outputs − r

(Silverstein and Choi's edge of the generalized Marchenko-Pastur law; √features + √outputs where all a_i are 1). It fluctuates by
min(features, outputs)^(−2/3), as Tracy and Widom say. The rank ends at the last singular value that stands clear of that edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_TINY = 1e-300


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What was set by hand.

    Attributes:
        oversampling: random columns beyond the rank: they miss a direction with probability below 1e-12 (Halko et al.).
        filled: share of a few random columns that the rank may take up: beyond, a direction stands out ten times less than it could.
        structural_zeros: directions that a normalization removes from every input whatever the batch (its mean, at most one more).
        entries: random columns that each output is added to (Martinsson and Tropp's advice for sparse sign embeddings).
        probes: random columns that measure what the range finder left behind.
        fluctuation: of the largest singular value, relative, times min(features, outputs)^(−2/3): the law of Tracy and Widom is exceeded by
            more with probability 1e-6 (its quantile 6.3, times .63 for a square matrix, halved for the root).
        uneven: factor for rounding whose size is no product of a row's and a column's. Set by hand: among some tens of gradients of forms,
            code and other languages that were looked at, the worst floor stood 1.24 times above its edge; no script records them.
        fewest_left: directions left to the floor from which their energy tells its size: the smallest singular values of a square
            matrix have no sharp law, and normalization empties some.
        passes: estimates of the rows' sizes, the last ones of which are equal.
        edge_points: points at which z(m) is evaluated.
    """

    oversampling: int = 16
    filled: float = 0.8
    structural_zeros: int = 2
    entries: int = 8
    probes: int = 8
    fluctuation: float = 2.0
    uneven: float = 1.2
    fewest_left: int = 8
    passes: int = 4
    edge_points: int = 256


SETTINGS = Settings()
OVERSAMPLING = SETTINGS.oversampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Leading:
    """The directions that stand out.

    Attributes:
        basis: orthonormal columns, strongest first; ``singular``: their singular values, in units of the noise per entry.
        spectrum: all singular values that were computed.
        noise: standard deviation per entry of the rest, in the same units.
        edge: the largest singular value that noise alone has in as many outputs as were looked at.
    """

    basis: Float[Tensor, "features rank"]
    singular: Float[Tensor, " rank"]
    spectrum: Float[Tensor, " leading"]
    noise: float
    edge: float

    @property
    def worst(self) -> float:
        """Residual of a member along the direction that noise tilts most, to first order."""
        features, rank = self.basis.shape
        return self.noise * math.sqrt(features - rank) / float(self.singular.min())

    def ends(self, highest: float) -> bool:
        """Whether some of the spectrum lies below ``highest``, beyond the zeros that every batch has."""
        return int((self.spectrum <= highest).sum()) > SETTINGS.structural_zeros


def noise_edge(features: int, outputs: int) -> float:
    """The largest singular value of white noise of size one."""
    return math.sqrt(features) + math.sqrt(outputs)


def room(columns: int) -> int:
    """The largest rank that ``columns`` random sums can show."""
    return min(int(SETTINGS.filled * columns), columns - OVERSAMPLING)


def from_sums(gradient: Float[Tensor, "features outputs"], columns: int, *, spread: float) -> Leading | None:
    """The directions that a few random sums of the outputs show; None where they fill them.

    Y = W Ω is itself a sum of inputs times (random) errors under white noise of size one: all that holds of W holds of Y, with
    ``columns`` outputs in the place of all. On average a direction stands out √outputs / (√columns − √rank) times less.
    """
    features, outputs = gradient.shape
    sums = _sums(gradient, columns)
    values, vectors = torch.linalg.eigh(sums.T @ sums)
    spectrum = values.flip(0).clamp(min=0).sqrt()
    edge = noise_edge(features, columns)
    leading = vectors.flip(1)
    rank = choose_rank(spectrum, lambda: sums @ leading, rows=features, outputs=columns, low=edge, high=edge * spread)
    if rank > room(columns):
        return None
    # Of every sum a share rank / outputs falls to the leading directions, where noise does not show.
    shown = (features - rank) * (columns - rank) * (1.0 - rank / outputs)
    rest = float(spectrum[rank:].square().sum()) / shown
    basis = torch.linalg.qr(sums @ (leading[:, :rank] / spectrum[:rank])).Q
    return Leading(basis=basis, singular=spectrum[:rank], spectrum=spectrum, noise=math.sqrt(rest), edge=edge)


def from_range(gradient: Float[Tensor, "features outputs"], columns: int, *, spread: float) -> Leading | None:
    """The directions by a randomized range finder; None unless its tail shows the floor."""
    features, outputs = gradient.shape
    mixed = _sums(gradient, columns + SETTINGS.probes)
    frame = torch.linalg.qr(mixed[:, :columns]).Q
    # One subspace iteration: without it the frame leans by the noise of all columns, ten times more than it must.
    frame = torch.linalg.qr(gradient @ (frame.T @ gradient).T).Q
    small = frame.T @ gradient
    values, vectors = torch.linalg.eigh(small @ small.T)
    spectrum = values.flip(0).clamp(min=0).sqrt()
    edge = noise_edge(features, outputs)
    turned = frame @ vectors.flip(1)
    rank = choose_rank(spectrum, lambda: turned * spectrum, rows=columns, outputs=outputs, low=edge, high=edge * spread)
    if rank > columns - OVERSAMPLING // 2 or int((spectrum <= edge * spread).sum()) <= SETTINGS.structural_zeros:
        return None
    basis = turned[:, :rank]
    probes = mixed[:, columns:]
    left = (probes - basis @ (basis.T @ probes)).square().sum() / SETTINGS.probes
    # A sum has the length of one output on average, and the rest of the noise has outputs − rank dimensions of them.
    rest = float(left) * outputs / ((features - rank) * max(1, outputs - rank))
    return Leading(
        basis=basis,
        singular=spectrum[:rank].clamp(min=_TINY),
        spectrum=spectrum,
        noise=math.sqrt(rest),
        edge=edge,
    )


def from_gram(gradient: Float[Tensor, "features outputs"], *, spread: float) -> Leading:
    """The directions by an eigendecomposition in full."""
    features, outputs = gradient.shape
    values, vectors = torch.linalg.eigh(gradient @ gradient.T)
    spectrum = values.flip(0).clamp(min=0).sqrt()
    edge = noise_edge(features, outputs)
    leading = vectors.flip(1)
    rank = choose_rank(
        spectrum, lambda: leading * spectrum, rows=features, outputs=outputs, low=edge, high=edge * spread
    )
    rest, tail = features - rank, float(spectrum[rank:].square().sum())
    return Leading(
        basis=leading[:, :rank],
        singular=spectrum[:rank].clamp(min=_TINY),
        spectrum=spectrum,
        noise=math.sqrt(tail / (rest * max(1, outputs - rank))) if rest and outputs > rank else 1.0,
        edge=edge,
    )


def choose_rank(
    spectrum: Float[Tensor, " leading"],
    strengths: Callable[[], Float[Tensor, "features leading"]],
    *,
    rows: int,
    outputs: int,
    low: float,
    high: float,
) -> int:
    """The rank between ``#{σ > high}`` and ``#{σ > low}`` whose last singular value stands clear of what it leaves to the floor.

    To leave out a weak direction makes members along it look like strangers, to keep one of the floor costs one dimension of hundreds:
    so the last clear step counts, and not the largest.

    Args:
        strengths: the directions as columns, times their singular values; asked only where the window is open.
        rows, outputs: of the matrix of which this is the spectrum.
        low: edge of the noise that is known; ``high``: of the largest that rounding can be.
    """
    fewest = max(1, int((spectrum > high).sum()))
    most = int((spectrum > low).sum())
    if most <= fewest:
        return max(most, 1)
    energy = strengths().square()
    last = min(most, min(rows, outputs) - SETTINGS.fewest_left)
    if last < fewest:
        return _widest_step(spectrum, fewest=fewest, most=most, low=low)
    behind = energy.flip(1).cumsum(1).flip(1)
    counts = torch.arange(fewest, last + 1)
    whole = behind.sum(dim=0)[fewest : last + 1].cpu()
    standing = (spectrum[fewest - 1 : last].cpu() / _white_edges(whole, rows - counts, outputs - counts)).nan_to_num()
    rank = fewest
    for _ in range(SETTINGS.passes):
        clear = (standing > SETTINGS.uneven * unevenness(behind[:, rank], outputs - rank)).nonzero()
        if not len(clear) or int(counts[clear[-1]]) == rank:
            break
        rank = int(counts[clear[-1]])
    return rank


def _white_edges(
    energy: Float[Tensor, " ranks"], rows: Int64[Tensor, " ranks"], outputs: Int64[Tensor, " ranks"]
) -> Float[Tensor, " ranks"]:
    """The largest singular value of white noise of this energy, as far up as chance lifts it."""
    size = (energy / (rows * outputs)).sqrt()
    fluctuation = 1 + SETTINGS.fluctuation * torch.minimum(rows, outputs).double() ** (-2 / 3)
    return fluctuation * size * (rows.double().sqrt() + outputs.double().sqrt())


def unevenness(energy: Float[Tensor, " features"], outputs: int) -> float:
    """How much higher the largest singular value of noise is whose rows have this energy than that of white noise with as much."""
    if float(energy.sum()) <= 0:
        return 1.0
    squares = energy / energy.mean()
    m = torch.linspace(0, 1, SETTINGS.edge_points + 2, dtype=squares.dtype, device=squares.device)[1:-1] / squares.max()
    z = 1 / m + (squares / (1 - squares * m.unsqueeze(1))).sum(dim=1) / outputs
    return math.sqrt(float(z.min()) * outputs) / noise_edge(len(energy), outputs)


def _widest_step(spectrum: Float[Tensor, " leading"], *, fewest: int, most: int, low: float) -> int:
    """The largest ratio of neighbors, where too few directions are left to know the floor by.

    Values below ``low`` count as ``low``: directions that the layer's input never has (LayerNorm removes one) are zero
    up to nothing, and the drop to them says nothing about the batch.
    """
    logs = torch.cat((spectrum, spectrum.new_zeros(1))).clamp(min=low).log()
    gaps = logs[fewest - 1 : most] - logs[fewest : most + 1]
    return fewest + int(gaps.argmax())


def _sums(gradient: Float[Tensor, "features outputs"], columns: int) -> Float[Tensor, "features columns"]:
    """W Ω, Ω a sparse matrix of signs whose columns have unit length on average.

    The signs come from a fixed seed: they are part of the method, and the same update gives the same space.
    """
    features, outputs = gradient.shape
    rng = torch.Generator().manual_seed(features * outputs + columns)
    sums = gradient.new_zeros(features, 2 * columns)
    for _ in range(SETTINGS.entries):
        # The second half of the columns is subtracted: a random sign.
        sums.index_add_(1, torch.randint(2 * columns, (outputs,), generator=rng).to(sums.device), gradient)
    return (sums[:, :columns] - sums[:, columns:]) * math.sqrt(columns / (SETTINGS.entries * outputs))
