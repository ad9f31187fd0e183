"""Exactly as many users of each public group, in every round."""

from dataclasses import dataclass

import numpy as np

from fedsim_userdp.population import Past, Population
from fedsim_userdp.privacy import accounting as acc


@dataclass(frozen=True)
class FixedStrataSelector:
    """Takes `users_per_group` users of each group, uniformly without replacement; all of a group that is no larger.

    Guarantee: `acc.FixedSizeStrata`, replace-one of a user by one of the same group, sensitivity 2 * clip_norm.

    Attributes:
        column: the public column that says a user's group.
        users_per_group: users of a group in a round, at least 1.
    """

    column: str
    users_per_group: int

    def __post_init__(self) -> None:
        if self.users_per_group < 1:
            raise ValueError(f"users_per_group={self.users_per_group} must be at least 1")

    def cohort(
        self,
        round: int,
        population: Population,
        past: Past,
        rng_round: np.random.Generator,
        rng_run: np.random.Generator,
    ) -> np.ndarray:
        """Returns a uniform subset of each group."""
        values = population.column(self.column)
        members = [np.flatnonzero(values == value) for value in np.unique(values)]
        chosen = [rng_round.choice(users, min(self.users_per_group, len(users)), replace=False) for users in members]
        return np.concatenate(chosen)

    def expected_cohort_size(self, population: Population) -> float:
        """Returns the size of every cohort."""
        return float(sum(chosen for _, chosen in self._groups(population)))

    def release(self, noise_multiplier: float, population: Population, rounds: int) -> acc.Description:
        """Returns `acc.FixedSizeStrata`."""
        return acc.FixedSizeStrata(noise_multiplier, self._groups(population), rounds)

    def _groups(self, population: Population) -> tuple[tuple[int, int], ...]:
        """Users, and users a round, of each group."""
        sizes = np.unique(population.column(self.column), return_counts=True)[1].tolist()
        return tuple((size, min(self.users_per_group, size)) for size in sizes)
