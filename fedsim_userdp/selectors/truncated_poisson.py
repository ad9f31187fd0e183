"""Poisson sampling with a largest cohort, for a machine that takes no more."""

from dataclasses import dataclass

import numpy as np

from fedsim_userdp.population import Past, Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.streams import RunKey


@dataclass(frozen=True)
class TruncatedPoissonSelector:
    """Draws every user with `sampling_prob`; of more than `most_users`, that many at random take part.

    Coins and places belong to users' ids, so that one user more adds one to a cohort, takes another one's place, or
    changes nothing.

    Guarantee: `acc.TruncatedPoisson`, add-or-remove of one user; the number of users is public.

    Attributes:
        sampling_prob: probability with which each user is drawn, in (0, 1].
        most_users: largest cohort, at least 1.
    """

    sampling_prob: float
    most_users: int

    def __post_init__(self) -> None:
        if not 0 < self.sampling_prob <= 1:
            raise ValueError(f"sampling_prob={self.sampling_prob} must lie in (0, 1]")
        if self.most_users < 1:
            raise ValueError(f"most_users={self.most_users} must be at least 1")

    def cohort(
        self,
        round: int,
        population: Population,
        past: Past,
        rng_round: np.random.Generator,
        rng_run: np.random.Generator,
    ) -> np.ndarray:
        """Returns the users whose coin fell below `sampling_prob`, at most `most_users`, in an order of their own."""
        key = RunKey(rng_round.bytes(32), is_seeded=False)
        drawn = np.flatnonzero(key.coins("selection", population.id_hashes) < self.sampling_prob)
        places = key.coins("selection", population.id_hashes[drawn], round=1)
        return drawn[np.argsort(places, kind="stable")[: self.most_users]]

    def expected_cohort_size(self, population: Population) -> float:
        """Returns the mean size of a cohort that is cut off."""
        return self._of(1.0, population, 1).expected_cohort_size

    def release(self, noise_multiplier: float, population: Population, rounds: int) -> acc.Description:
        """Returns `acc.TruncatedPoisson`."""
        return self._of(noise_multiplier, population, rounds)

    def _of(self, noise_multiplier: float, population: Population, rounds: int) -> acc.TruncatedPoisson:
        """The description of a run."""
        return acc.TruncatedPoisson(noise_multiplier, self.sampling_prob, len(population), self.most_users, rounds)
