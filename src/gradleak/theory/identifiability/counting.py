"""How many real numbers an attention layer's gradient fixes, before anything is solved. The gradient has as many
entries as the layer has weights, but not all are independent: each direction in weight space that leaves the layer's
output alone is an identity that every honest gradient satisfies.

With width d, H heads of width k = d/H and no biases

    N_eq = 4d² − 2d²/H            (value and output: H·k² identities; query and key: H·k²)

so data are locally unique only if unknowns ≤ N_eq: for b records of n tokens b·n ≤ (4 − 2/H)·d with known targets and
b·n ≤ (2 − 1/H)·d with unknown ones. Both are necessary, not sufficient; a residual of zero proves nothing at equality.

Must not know a model or data.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from gradleak.core.errors import SpecError


class Uniqueness(Enum):
    """What can be said about the data behind a gradient; the value is the sentence a reader sees."""

    UNIQUE = "unique"
    UP_TO_SYMMETRY = "unique up to a symmetry"
    CONTINUUM = "a continuum of data has this very gradient"
    UNDERDETERMINED = "under-determined: more unknowns than equations"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A conclusion with its reason in one sentence."""

    uniqueness: Uniqueness
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShape:
    """The sizes of one attention layer.

    Attributes:
        width: of the input and of the output.
        heads: query heads; kv_heads: key and value heads, a divisor of ``heads``; head_width: of each.
        biases: whether all four maps have one.
        rotary: whether queries and keys are turned by their position.

    Raises:
        SpecError: if a size is not positive or heads do not divide.
    """

    width: int
    heads: int
    kv_heads: int
    head_width: int
    biases: bool = False
    rotary: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.kv_heads, self.head_width) < 1 or self.heads % self.kv_heads:
            raise SpecError(
                f"An attention layer needs positive sizes and key heads that divide the query heads, got {self}."
            )
        if self.rotary and self.head_width % 2:
            raise SpecError(f"Rotary positions turn pairs of features; the head width {self.head_width} is odd.")

    @staticmethod
    def plain(width: int, heads: int) -> AttentionShape:
        """The layer of the counting law: equal heads that share the width, no biases."""
        if heads < 1 or width % heads:
            raise SpecError(f"The width must be a multiple of the number of heads, got {width} and {heads}.")
        return AttentionShape(width=width, heads=heads, kv_heads=heads, head_width=width // heads)

    @property
    def weights(self) -> int:
        """Entries of the layer's gradient."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        matrices = 2 * self.width * (queries + keys)
        return matrices + (queries + 2 * keys + self.width if self.biases else 0)

    @property
    def identities(self) -> int:
        """Independent linear identities among them.

        Value and output of a key head: k². Query and key: k², or the k matrices that commute with the rotations (one
        complex number per pair of features). With biases two more kinds: the gradient of the key bias is zero (not where
        keys are turned), and that of the value bias is the output bias's seen through the output map.
        """
        square = self.head_width**2
        keys = self.kv_heads * self.head_width
        gauge = self.kv_heads * (square + (self.head_width if self.rotary else square))
        return gauge + (keys * (1 if self.rotary else 2) if self.biases else 0)

    @property
    def equations(self) -> int:
        """N_eq: independent numbers in the gradient."""
        return self.weights - self.identities


def unknowns(shape: AttentionShape, *, records: int, tokens: int, targets_known: bool) -> int:
    """Real numbers to find: the inputs of the layer, and as many targets if those are private too."""
    return records * tokens * shape.width * (1 if targets_known else 2)


def expected_rank(shape: AttentionShape, *, records: int, tokens: int, targets_known: bool) -> int:
    """Rank of the Jacobian of the gradient with respect to generic data of a plain layer with squared loss.

    min(unknowns, N_eq), less one for a single head, one record of at most ``width`` tokens and unknown targets: there
    the rows of the softmax derivative sum to zero, and one direction of data moves nothing.
    """
    count = unknowns(shape, records=records, tokens=tokens, targets_known=targets_known)
    curve = shape.heads == 1 and records == 1 and not targets_known and tokens <= shape.width
    return min(count, shape.equations) - (1 if curve and count <= shape.equations else 0)


def identify(
    shape: AttentionShape,
    *,
    records: int,
    tokens: int,
    targets_known: bool,
    duplicates: bool = False,
    fitted: bool = False,
) -> Verdict:
    """The verdict of the counting law for one layer with squared loss, before any attack.

    Args:
        duplicates: whether a token stands twice with the same target.
        fitted: whether the layer already predicts its targets exactly, so that the gradient is zero.
    """
    if fitted:
        return Verdict(
            uniqueness=Uniqueness.CONTINUUM,
            reason="The gradient is zero, and so it is for all data that the layer fits: it tells nothing but that.",
        )
    count = unknowns(shape, records=records, tokens=tokens, targets_known=targets_known)
    rank = expected_rank(shape, records=records, tokens=tokens, targets_known=targets_known)
    sides = f"{count} unknowns, {shape.equations} independent equations"
    if count > shape.equations:
        return Verdict(
            uniqueness=Uniqueness.UNDERDETERMINED,
            reason=f"{sides}: at least {count - shape.equations} directions of data leave the gradient as it is.",
        )
    if rank < count:
        return Verdict(
            uniqueness=Uniqueness.CONTINUUM,
            reason=f"{sides}, but a single head with unknown targets has rank {rank}: a curve of wrong data has this gradient.",
        )
    if duplicates:
        return Verdict(
            uniqueness=Uniqueness.CONTINUUM,
            reason=f"{sides}, but a token that stands twice with the same target leaves its two copies free to part.",
        )
    if count == shape.equations:
        return Verdict(
            uniqueness=Uniqueness.UP_TO_SYMMETRY,
            reason=f"{sides}: a square system has isolated wrong solutions with residual zero, so a residual proves nothing.",
        )
    if targets_known and records == 1:
        return Verdict(uniqueness=Uniqueness.UNIQUE, reason=f"{sides}: strictly over-determined, known targets.")
    broken = "the order of the records" if targets_known else "the order of the tokens and the sign of all of them"
    return Verdict(uniqueness=Uniqueness.UP_TO_SYMMETRY, reason=f"{sides}; what stays open is {broken}.")
