"""Nobody again before so many rounds have gone by, in an order that nobody knows."""

from dataclasses import dataclass

import numpy as np

from fedsim_userdp.population import Past, Population
from fedsim_userdp.privacy import accounting as acc


@dataclass(frozen=True)
class SeparatedSelector:
    """Deals users to `min_separation` blocks once in a run; in turn, `cohort_size` users of one of them take part.

    Guarantee: no amplification by sampling; a user is in at most every `min_separation`-th round, which is checked as
    the run goes (`acc.Unamplified`).

    Attributes:
        min_separation: least number of rounds from one in which a user takes part to the next, at least 1.
        cohort_size: users in a round, at least 1 and at most the users of a block.
    """

    min_separation: int
    cohort_size: int

    def __post_init__(self) -> None:
        if self.min_separation < 1:
            raise ValueError(f"min_separation={self.min_separation} must be at least 1")
        if self.cohort_size < 1:
            raise ValueError(f"cohort_size={self.cohort_size} must be at least 1")

    def cohort(
        self,
        round: int,
        population: Population,
        past: Past,
        rng_round: np.random.Generator,
        rng_run: np.random.Generator,
    ) -> np.ndarray:
        """Returns a uniform subset of the round's block."""
        block = rng_run.permutation(len(population))[(round - 1) % self.min_separation :: self.min_separation]
        return rng_round.choice(block, size=self.cohort_size, replace=False)

    def expected_cohort_size(self, population: Population) -> float:
        """Returns `cohort_size`.

        Raises:
            ValueError: a block has fewer users.
        """
        if self.cohort_size > (most := len(population) // self.min_separation):
            raise ValueError(
                f"cohort_size={self.cohort_size} must be at most {most}: {len(population)} users are dealt to "
                f"min_separation={self.min_separation} blocks"
            )
        return float(self.cohort_size)

    def release(self, noise_multiplier: float, population: Population, rounds: int) -> acc.Description:
        """Returns `acc.Unamplified` with ceil(rounds / min_separation) participations."""
        self.expected_cohort_size(population)
        return acc.Unamplified.separated(noise_multiplier, rounds, self.min_separation)
