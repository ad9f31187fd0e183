"""Random unit directions by the thousand for each canary, whose inner products with a release are all cheap.

The candidates of a canary come in families of B, the largest power of two up to the adapter's size.  Candidate k of a
family is c_k[j] = sign[j] * H[j mod B, k] / sqrt(size): a column of the Hadamard matrix H of order B, begun again where
it ends, behind random signs of canary and family.  Every candidate has norm 1 and looks random to whoever does not know
the signs; within a family they are orthogonal, or nearly so where B does not divide the size.  All inner products of a
family with a vector take one folding and one Walsh-Hadamard transform.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard

from fedsim_userdp.privacy.streams import RunKey

Floats = NDArray[np.float32]
MOST_CANDIDATES = 2**20


@dataclass(frozen=True)
class Directions:
    """The public candidate directions of every canary.

    Attributes:
        size: trainable parameters of the adapter, at least 2.
        num_candidates: K, a power of two in [2, 2^20].
        seed: of the signs.
    """

    size: int
    num_candidates: int
    seed: int

    def __post_init__(self) -> None:
        k = self.num_candidates
        if not isinstance(k, int) or not 2 <= k <= MOST_CANDIDATES or k & (k - 1):
            raise ValueError(f"audit.candidates={k} must be a power of two from 2 to {MOST_CANDIDATES}")
        if self.size < 2:
            raise ValueError(f"size={self.size} must be at least 2")

    def direction(self, canary: int, candidate: int) -> Floats:
        """Returns one direction, shape [size], of norm 1."""
        family, column = divmod(candidate, self._order)
        left, right = self._factors
        row, place = divmod(column, len(right))
        return np.resize(np.outer(left[row], right[place]), self.size) * self._signs(canary, family)

    def inner_products(self, canary: int, vectors: Floats) -> Floats:
        """Returns the inner product of each vector with each candidate of one canary.

        Args:
            canary: number of the canary.
            vectors: shape [vectors, size].

        Returns:
            Shape [vectors, num_candidates].
        """
        families = range(self.num_candidates // self._order)
        return np.concatenate([self._of_family(vectors * self._signs(canary, family)) for family in families], axis=1)

    def _of_family(self, signed: Floats) -> Floats:
        """The inner products with the Hadamard columns, shape [vectors, order]."""
        left, right = self._factors
        padded = np.pad(signed, ((0, 0), (0, -self.size % self._order)))
        folded = padded.reshape(len(signed), -1, self._order).sum(1)
        transformed: Floats = left @ folded.reshape(len(signed), len(left), len(right)) @ right
        return transformed.reshape(len(signed), self._order)

    def _signs(self, canary: int, family: int) -> Floats:
        """The signs of a canary's family over sqrt(size), shape [size]."""
        generator = RunKey.seeded(self.seed).generator("audit", user=f"signs of canary {canary}, family {family}")
        bits = np.unpackbits(np.frombuffer(generator.bytes(-(-self.size // 8)), dtype=np.uint8), count=self.size)
        return (np.float32(1) - np.float32(2) * bits.astype(np.float32)) / np.float32(np.sqrt(self.size))

    @property
    def _order(self) -> int:
        """B: more columns than rows would repeat themselves."""
        return int(min(self.num_candidates, 2 ** (self.size.bit_length() - 1)))

    @cached_property
    def _factors(self) -> tuple[Floats, Floats]:
        """Two Hadamard matrices whose Kronecker product is the one of order B."""
        exponent = self._order.bit_length() - 1
        left, right = (hadamard(2**part, dtype=np.float32) for part in (exponent // 2, exponent - exponent // 2))
        return left, right
