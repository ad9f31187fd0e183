"""Users drawn more often the more records they are publicly known to have, and weighted back."""

from dataclasses import dataclass

import numpy as np

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.population import Past, Population


@dataclass(frozen=True)
class ImportanceSelector:
    """Samples users in proportion to a public number, such as of their records, and weighs their updates back.

    The weighted sum has the mean of plain sampling, so that nobody counts more in expectation; users with large numbers
    are heard more evenly.  A user with a small number has a large weight, and the noise must cover that: `least_share`
    bounds it.

    Attributes:
        column: the public column, of numbers at least 0.
        cohort_size: expected users in a round, above 0.
        least_share: the least probability, as a share of the mean one, in (0, 1].
    """

    column: str
    cohort_size: float
    least_share: float = 0.5

    def __post_init__(self) -> None:
        if not self.cohort_size > 0:
            raise ValueError(f"cohort_size={self.cohort_size} must be above 0")
        if not 0 < self.least_share <= 1:
            raise ValueError(f"least_share={self.least_share} must lie in (0, 1]")

    def probabilities(self, round: int, population: Population, past: Past) -> np.ndarray:
        """Returns the mean probability times the user's number over the mean one, at least `least_share` of it."""
        numbers = population.numbers(self.column)
        if (numbers < 0).any():
            raise ConfigError(f"the column {self.column!r} of public facts must hold numbers of at least 0")
        share = np.maximum(numbers / max(float(numbers.mean()), 1e-12), self.least_share)
        return np.minimum(share / share.mean() * self._mean(population), 1.0)

    def weights(self, round: int, population: Population) -> np.ndarray:
        """Returns the mean probability over the user's own."""
        return self._mean(population) / self.probabilities(round, population, Past())

    def _mean(self, population: Population) -> float:
        """The mean probability."""
        return min(self.cohort_size / len(population), 1.0)
