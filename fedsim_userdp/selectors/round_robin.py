"""Blocks of users in turn: nobody again before everybody else could."""

from dataclasses import dataclass

import numpy as np

from fedsim_userdp.population import Past, Population


@dataclass(frozen=True)
class RoundRobinSelector:
    """Takes one of `num_blocks` blocks of users in each round, in turn; within it, each user with `sampling_prob`.

    The hash of a user's id says the block, so that one user more or less moves nobody else.  The promise is for a user
    whose records are emptied: which blocks have anybody in them decides what the costliest one costs.  With
    `sampling_prob` 1 nothing is amplified: a user is in every `num_blocks`-th round.

    Attributes:
        num_blocks: rounds from one turn of a block to the next, at least 1.
        sampling_prob: probability with which a user of the block takes part, in (0, 1].
    """

    num_blocks: int
    sampling_prob: float = 1.0

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            raise ValueError(f"num_blocks={self.num_blocks} must be at least 1")
        if not 0 < self.sampling_prob <= 1:
            raise ValueError(f"sampling_prob={self.sampling_prob} must lie in (0, 1]")

    def probabilities(self, round: int, population: Population, past: Past) -> np.ndarray:
        """Returns `sampling_prob` for the users of the round's block, 0 for the others."""
        block = population.id_hashes % np.uint64(self.num_blocks)
        return np.where(block == (round - 1) % self.num_blocks, self.sampling_prob, 0.0)

    def denominator(self, round: int, population: Population) -> float:
        """Returns the mean size of a cohort over all blocks, which does not depend on who is in which."""
        return self.sampling_prob * len(population) / self.num_blocks
